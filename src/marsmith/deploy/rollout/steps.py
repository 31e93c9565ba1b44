"""Execution of a plan: each step is journalled first; a failure before the end restores the earlier state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from marsmith.archive.admit import admit
from marsmith.archive.verify import Verification, environment_checks
from marsmith.client.blocking_client import VersionStatus
from marsmith.config import admission_policy
from marsmith.deploy.rollout.observation import RolloutLimits, Sample, Window, probes_slower
from marsmith.deploy.rollout.plan import Action, Situation, Step, Target
from marsmith.deploy.rollout.probes import Prober
from marsmith.deploy.rollout.recovery import tidy, undo
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.rollout.store import Deployable, copy_into_store
from marsmith.deploy.rollout.watch import Observer, RolloutWatch, died_since
from marsmith.errors import MarsmithError, ServerError
from marsmith.names import ModelVersion
from marsmith.server import state as server_state
from marsmith.state.journal import Change, Copy, Journal, Release
from marsmith.state.version_bytes import bound_digest

KEEP = 2


@dataclass(frozen=True)
class Options:
    """Options of a deploy.

    Attributes:
        keep: number of earlier versions that stay registered.
        watch_s: duration of the watch of errors and latency after the switch, in seconds; 0: no watch.
        limits: limits that the new version must keep.
        workers: number of workers; None: as in its model config.
    """

    keep: int = KEEP
    watch_s: float = 10.0
    limits: RolloutLimits = field(default_factory=RolloutLimits)
    workers: int | None = None


@dataclass
class Rollout:
    """The execution of one plan.

    Attributes:
        site: the server and the journal.
        target: the version to switch to.
        seen: the state before.
        options: the options.
        prober: sends the archive's examples.
        observer: reads the server's counters.
        deployable: the archive; None if a registered version is rolled back to.
        hand_over: leaves the prepared version to whoever gives it its requests share by share.
    """

    site: ModelServer
    target: Target
    seen: Situation
    options: Options
    prober: Prober
    observer: Observer
    deployable: Deployable | None
    hand_over: Callable[[], None] | None = None
    _journal: Journal = field(init=False)
    _first: Sample | None = None
    _before: Window | None = None
    _latencies: tuple[float, ...] = ()
    _status: VersionStatus | None = None
    _accepted: bool = False

    def run(self, steps: Sequence[Step], journal: Journal) -> None:
        """Take the steps. After the step ``canary`` the change goes on, and is no longer this process's.

        Raises:
            ServerError: a step failed. If the new version was not accepted yet, the earlier state is restored.
        """
        self._journal = journal.begun(self._change(steps[0]))
        self._first = self.observer.sample()
        try:
            for step in steps:
                self._take(step)
        except MarsmithError as error:
            raise self._failed(error) from error
        except BaseException:
            # Ctrl-C must undo the deploy now, and not at the next deploy.
            if not self._accepted:
                self._undo()
            raise
        if self.hand_over is None:
            self.site.file.write(self._journal.ended())

    def _take(self, step: Step) -> None:
        if step.action != "verify":
            self._journal = self._journal.at(step.action)
            self.site.file.write(self._journal)
        self.site.perform(step, lambda: self._work(step.action)(step))

    def _work(self, action: Action) -> Callable[[Step], str | None]:
        return {
            "verify": self._verify,
            "store": self._store,
            "register": self._register,
            "ready": self._ready,
            "probe": self._probe,
            "shadow": self._hand_over,
            "canary": self._hand_over,
            "switch": self._switch,
            "watch": self._watch,
            "accept": self._accept,
        }.get(action) or (lambda step: tidy(self.site, step))

    def _verify(self, _step: Step) -> str | None:
        if self.deployable is None:
            return None
        archive, policy = self.deployable.archive, admission_policy(self.site.project)
        admitted = admit(archive, policy, expected_digest=self.deployable.digest or None)
        environment = Verification(archive.path, tuple(environment_checks(archive))).require().checks
        return "; ".join([*admitted.warnings, *(each.detail for each in environment if each.outcome == "warning")])

    def _store(self, _step: Step) -> None:
        if self.deployable:
            copy_into_store(self.site.store, self.deployable, self._note)

    def _note(self, copy: Copy) -> None:
        self._journal = self._journal.copying(copy)
        self.site.file.write(self._journal)

    def _register(self, _step: Step) -> None:
        self.site.register(self.target.release)
        self._remember()

    def _ready(self, _step: Step) -> str:
        self._status = status = self.site.make_ready(self.target.release)
        release = replace(self.target.release, workers=status.min_workers)
        if self._journal.change:
            self._journal = self._journal.begun(replace(self._journal.change, target=release))
        before = self.seen.workers.get(self.seen.default or "", 0)
        fewer = f"; {self.seen.default} has {before}" if before > status.min_workers else ""
        return f"{status.ready_workers} workers{fewer}"

    def _probe(self, step: Step) -> str:
        status, deploying = self._described(), self.target.kind == "deploy"
        problem = self.prober.predict_each(step.version)
        if deploying:
            problem = problem or self.prober.ask_together(status)
        problem = problem or died_since(status, self.site.describe(step.version))
        if problem:
            raise ServerError(problem, tip=self._logs())
        if deploying and self.seen.default:
            self._compare(self.seen.default, step.version)
        count = len(self.prober.examples)
        return (
            f"{count} examples answered as validated"
            if count
            else "it has no examples, so its answers were not checked"
        )

    def _compare(self, old: str, new: str) -> None:
        self._latencies, latencies = self.prober.compare(old, new)
        if slow := probes_slower(self._latencies, latencies, self.options.limits):
            raise ServerError(slow, tip="allow more with --max-latency-ratio if this is intended")

    def _hand_over(self, _step: Step) -> None:
        if self.hand_over:
            self.hand_over()

    def _switch(self, step: Step) -> None:
        if self._first:
            self._before = Window(self._first, self.observer.settled(), self.seen.default)
        now = self.site.situation(self._journal).default
        if now != self.seen.default:
            raise ServerError(f"someone else made {now} the default version instead of {self.seen.default} meanwhile")
        self.site.client.set_default(self.site.model, step.version)
        self._remember()

    def _remember(self) -> None:
        """Save the configuration that a restart restores. Later differences are changes by someone else."""
        server_state.record(self.site.project, self.site.contents)

    def _watch(self, _step: Step) -> str:
        if self._first is None:
            return ""
        before = self._before or Window(self._first, self._first, self.seen.default)
        watch = RolloutWatch(
            self.observer, self.prober, before, self._latencies, self.options.limits, self.options.watch_s
        )
        seen = watch.run(self._described())
        if seen.trouble:
            raise ServerError(seen.trouble, tip=self._logs())
        return _summary(seen.after)

    def _accept(self, _step: Step) -> None:
        self._journal = self._journal.accepted().at("drain")
        self.site.file.write(self._journal)
        self._accepted = True

    def _described(self) -> VersionStatus:
        return self._status or self.site.describe(self.target.release.version)

    def _change(self, first: Step) -> Change:
        seen, release = self.seen, self.target.release
        return Change(
            kind=self.target.kind,
            target=release,
            before=self._before_release(),
            registered_before=release.version in seen.workers,
            workers_before=seen.workers.get(release.version, 0),
            stored=self.target.stored,
            keep=self.options.keep,
            step=first.action,
            source=str(self.deployable.archive.path) if self.target.stored and self.deployable else None,
            workers=dict(seen.workers),
        )

    def _before_release(self) -> Release | None:
        version = self.seen.default
        if version is None:
            return None
        known = {release.version: release for release in self.seen.releases}.get(version)
        workers = self.seen.workers[version]
        if known and known.digest:
            return replace(known, workers=workers)
        bound = bound_digest(self.site.project, ModelVersion(self.site.model, version))
        return Release(version, self.site.describe(version).archive_url.rpartition("/")[2], bound, workers)

    def _failed(self, error: MarsmithError) -> ServerError:
        name = f"{self.site.model}:{self.target.release.version}"
        if self._accepted:
            return ServerError(
                f"{name} answers, but the clean-up failed:{error.message}",
                tip="the next marsmith deploy or rollback of it continues the clean-up",
            )
        verb = "deployed" if self.target.kind == "deploy" else "rolled back to"
        try:
            self._undo()
        except MarsmithError as second:
            return ServerError(
                f"{name} was not {verb}: {error.message}\nit could not be undone yet: {second.message}",
                tip="the next marsmith deploy or rollback of it undoes it first",
            )
        return ServerError(f"{name} was not {verb}: {error.message}\n{self._as_before()}", tip=error.tip)

    def _as_before(self) -> str:
        default = self.seen.default
        return f"everything is as it was: {default} answers" if default else "it has been taken off again"

    def _undo(self) -> None:
        if self._journal.change and self._journal.change.step != "verify":
            self._journal = undo(self.site, self._journal, self._journal.change)

    def _logs(self) -> str:
        return f"what its workers printed: {self.site.project.run / 'logs' / 'model_log.log'}"


def scale_up(site: ModelServer, step: Step, release: Release, journal: Journal) -> None:
    """Give the default version more workers. If they do not become ready, the present number is restored.

    Raises:
        ServerError: the workers do not become ready; the earlier number is restored.
    """
    before = site.describe(release.version).min_workers
    try:
        site.perform(step, lambda: f"{site.make_ready(release).ready_workers} workers")
    except BaseException:
        site.client.scale(site.model, version=release.version, min_workers=before)
        raise
    site.file.write(journal.scaled(release))


def _summary(seen: Window) -> str:
    errors = f", {seen.items.errors:.0f} item errors" if seen.reports else f", {seen.refusals:.0f} refused"
    return f"{seen.answers:.0f} user requests{errors}, {seen.failures:.0f} failed"
