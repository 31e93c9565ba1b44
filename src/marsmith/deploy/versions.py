"""Deploy a new version without losing a request, and roll back to the one before.

An interrupted change is finished or undone first. One process at a time changes a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from marsmith.archive.store import examples_in
from marsmith.client.blocking_client import Client
from marsmith.client.http import Transport
from marsmith.client.retries import NO_RETRIES
from marsmith.deploy.rollout.plan import (
    Remedy,
    Step,
    Target,
    after_recovery,
    plan,
    preparation,
    recovery,
    taken_over,
)
from marsmith.deploy.rollout.probes import Prober
from marsmith.deploy.rollout.recovery import recover
from marsmith.deploy.rollout.site import Event, ModelServer, ignore_event
from marsmith.deploy.rollout.steps import KEEP, Options, Rollout, scale_up
from marsmith.deploy.rollout.store import Deployable, copy_into_store, find, model_of, take_back_copies
from marsmith.deploy.rollout.targets import deploy_target, of_this_model, rollback_target, stored_archive
from marsmith.deploy.rollout.watch import Observer
from marsmith.deploy.traffic.envoy import front_of
from marsmith.deploy.traffic.handover import (
    Given,
    Strategy,
    await_driver,
    check_comparable,
    check_possible,
    chosen_strategy,
    end_with_journal,
    farewell,
    hand_over,
    lock_wait_s,
    trial_steps,
)
from marsmith.deploy.traffic.shadow import Shadow
from marsmith.errors import ServerError
from marsmith.names import check_model_name
from marsmith.project import Project
from marsmith.server import state as server_state
from marsmith.server.left_out_versions import holds_place, in_its_place
from marsmith.server.opened import OpenedServer, open_server
from marsmith.server.registration import register_stored
from marsmith.state.journal import Change, Copy, Journal, JournalFile
from marsmith.state.version_bytes import check_bytes

__all__ = ["KEEP", "Event", "Options", "Outcome", "Planned", "deploy", "plan_deploy", "plan_rollback", "rollback"]

# What a version on trial gets: a share of the requests, or copies of them.
Trial = Literal["canary", "shadow"]


@dataclass(frozen=True)
class Planned:
    """The plan of a deploy or rollback.

    Attributes:
        model: model name.
        version: the version to switch to.
        before: the default version now; None if the model is not registered.
        interrupted: an earlier change and whether it is undone or finished first; ``leave``: it is only closed, because
            someone else has changed the model since.
        steps: the steps in order; empty if the version is the default already.
    """

    model: str
    version: str
    before: str | None
    interrupted: tuple[Change, Remedy] | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """Result of a deploy or rollback.

    Attributes:
        model: model name.
        version: the default version now.
        before: the default version before; None if the model was not registered.
        result: ``unchanged`` if the version was the default already, ``scaled`` if it got more workers, ``canary`` if
            it gets a share of the requests, ``shadow`` if it gets copies of them. Then the supervisor goes on, and
            ``before`` is the default version.
        events: every step with its duration, beginning with those of a recovery.
    """

    model: str
    version: str
    before: str | None
    result: Literal["deployed", "rolled back", "unchanged", "scaled", "canary", "shadow"]
    events: tuple[Event, ...]


def deploy(
    project: Project,
    reference: str,
    options: Options | None = None,
    *,
    strategy: Given | None = None,
    on_event: Callable[[Event], None] | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Bring the version of an archive into service, or restore the state before.

    Args:
        project: the project of the running server.
        reference: path of the archive, or its name in the model store.
        options: options of the deploy.
        strategy: ``Canary(...)``: share by share; ``Shadow(...)``: copies of requests first; ``"switch"``: all requests
            at once; None: as the model's spec says; values that go before those of the spec. A model without a default
            version has nothing to share.
        on_event: called before and after every step.
        wait_s: maximum wait for another process that deploys the model, in seconds.

    Raises:
        NotRunningError: the server is not running.
        UsageError: the archive does not exist, or its version exists with another digest.
        ArchiveError: the archive is damaged or its digests do not match.
        ServerError: the version failed, or another process deploys the model; the message says why.
    """
    options, model = options or Options(), model_of(project, reference)
    strategy, spec = chosen_strategy(project, model, strategy)
    with _site(project, model, on_event, wait_s) as site:
        if strategy != "switch":
            check_possible(site, strategy)
        before = site.file.read()
        # The recovery comes first, because what it finds or removes decides what the reference means.
        journal = _recovered(site, before)
        deployable = of_this_model(site, find(site.store, reference, before.change))
        if _is_kept_for(site, deployable):
            return _bring_back(site, deployable, options)
        target = deploy_target(site, deployable, options, journal)
        stable = site.situation(journal).default
        if strategy == "switch" or stable in {None, target.release.version}:
            return _roll_out(site, target, options, journal, deployable)
        check_comparable(site, strategy, deployable.archive, str(stable))
        give_share = partial(hand_over, site, target.release.version, str(stable), strategy, spec)
        kind: Trial = "shadow" if isinstance(strategy, Shadow) else "canary"
        outcome = _roll_out(site, target, options, journal, deployable, kind, give_share)
    # The supervisor needs the lock.
    with open_server(project) as server:
        await_driver(_model_server(server, model), outcome.version)
    return outcome


def rollback(
    project: Project,
    model: str,
    *,
    to: str | None = None,
    keep: int = KEEP,
    on_event: Callable[[Event], None] | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Make an earlier version the default again, and unregister the current one.

    Args:
        project: the project of the running server.
        model: model name.
        to: the version; None: the previous default version.
        keep: number of earlier versions that stay registered.
        on_event: called before and after every step.
        wait_s: maximum wait for another process that deploys the model, in seconds.

    Raises:
        NotRunningError: the server is not running.
        UsageError: no earlier version is known, or its archive does not exist.
        ServerError: the earlier version does not answer as it did; nothing was changed.
    """
    options = Options(keep=keep, watch_s=0.0)
    with _site(project, check_model_name(model), on_event, wait_s) as site:
        journal = _recovered(site, site.file.read())
        target = rollback_target(site, to, journal)
        return _roll_out(site, target, options, journal, stored_archive(site, target.release))


def plan_deploy(
    project: Project,
    reference: str,
    options: Options | None = None,
    *,
    strategy: Given | None = None,
) -> Planned:
    """Return the plan of ``deploy`` without any change. Raises the same errors."""
    options, model = options or Options(), model_of(project, reference)
    strategy, _ = chosen_strategy(project, model, strategy)
    with open_server(project) as server:
        site = _model_server(server, model)
        if strategy != "switch":
            check_possible(site, strategy)
        journal = site.file.read()
        deployable = of_this_model(site, find(site.store, reference, journal.change))
        if _is_kept_for(site, deployable):
            return Planned(site.model, deployable.version.version, None, None, (_in_its_place(deployable),))
        target = deploy_target(site, deployable, options, journal)
        stable = site.situation(journal).default
        if stable not in {None, target.release.version}:
            check_comparable(site, strategy, deployable.archive, str(stable))
        return _planned(site, target, options, journal, strategy)


def plan_rollback(project: Project, model: str, *, to: str | None = None, keep: int = KEEP) -> Planned:
    """Return the plan of ``rollback`` without any change. Raises the same errors."""
    with open_server(project) as server:
        site = _model_server(server, model)
        journal = site.file.read()
        return _planned(site, rollback_target(site, to, journal), Options(keep=keep, watch_s=0.0), journal)


@contextmanager
def _site(
    project: Project, model: str, on_event: Callable[[Event], None] | None, wait_s: float
) -> Iterator[ModelServer]:
    wait_s = lock_wait_s(project, model, wait_s)
    with JournalFile.of(project, model).locked(wait_s), open_server(project) as server:
        site = _model_server(server, model, on_event)
        try:
            yield site
        finally:
            if site.events:
                # The change must outlive a restart of the server, even if the deploy failed and was undone.
                server_state.record(project, site.contents)


def _model_server(server: OpenedServer, model: str, on_event: Callable[[Event], None] | None = None) -> ModelServer:
    file = JournalFile.of(server.project, model)
    return ModelServer(server, file, on_event or ignore_event, front=front_of(server.project))


def _recovered(site: ModelServer, journal: Journal) -> Journal:
    """Finish or undo what was interrupted, a rollout that nobody drives as well."""
    recovered = recover(site, journal)
    end_with_journal(site)
    return recovered


def _planned(
    site: ModelServer, target: Target, options: Options, journal: Journal, strategy: Strategy = "switch"
) -> Planned:
    seen, interrupted = site.situation(journal), None
    if journal.change:
        remedy: Remedy = "leave" if taken_over(journal.change, seen) else recovery(journal.change)
        interrupted = journal.change, remedy
        seen = after_recovery(journal.change, remedy, seen)
    version = target.release.version
    on_trial = trial_steps(version, seen.default, strategy) if seen.default else ()
    if on_trial and isinstance(strategy, Shadow) and strategy.then is None and seen.default != version:
        steps = (*preparation(target, seen), *on_trial, *farewell(version))
    else:
        steps = plan(target, seen, keep=options.keep, watch_s=options.watch_s, shares=on_trial)
    return Planned(site.model, target.release.version, seen.default, interrupted, steps)


def _roll_out(
    site: ModelServer,
    target: Target,
    options: Options,
    journal: Journal,
    deployable: Deployable | None,
    trial: Trial | None = None,
    give_share: Callable[[], None] | None = None,
) -> Outcome:
    seen, version = site.situation(journal), target.release.version
    steps = plan(target, seen, keep=options.keep, watch_s=options.watch_s)
    if trial:
        steps = (*preparation(target, seen), Step(trial, version, "leave its requests to the supervisor"))
    if not steps:
        return Outcome(site.model, version, version, "unchanged", tuple(site.events))
    if seen.default == version:
        scale_up(site, steps[0], target.release, journal)
        return Outcome(site.model, version, version, "scaled", tuple(site.events))
    state = site.server.state
    transport = Transport(state.ca_file)
    # A retry would hide failures that users see.
    with closing(transport), Client.of(state, retries=NO_RETRIES) as client:
        prober = Prober(client, site.model, tuple(examples_in(deployable.archive)) if deployable else ())
        observer = Observer(state, site.model, version, transport, prober)
        Rollout(site, target, seen, options, prober, observer, deployable, give_share).run(steps, journal)
    result: Literal["deployed", "rolled back"] = "deployed" if target.kind == "deploy" else "rolled back"
    return Outcome(site.model, version, seen.default, trial or result, tuple(site.events))


def _is_kept_for(site: ModelServer, deployable: Deployable) -> bool:
    """Whether this version is the default and left out of the server.

    It has no users then, so there is nothing to watch.
    """
    status = site.versions().get(deployable.version.version)
    return bool(status and status.default and holds_place(site.project, status))


def _in_its_place(deployable: Deployable) -> Step:
    version = deployable.version.version
    copied = "copy it into the model store, " if deployable.stored else ""
    return Step("register", version, f"{copied}register {version} in its reserved place, and check its examples")


def _bring_back(site: ModelServer, deployable: Deployable, options: Options) -> Outcome:
    """Register a version that was left out, after it is fixed. It becomes the default again after its examples pass.

    Raises:
        ServerError: the version does not answer its examples; it stays left out.
    """
    version = deployable.version
    check_bytes(site.project, version, deployable.archive.path, deployable.digest)

    def work() -> str:
        examples = tuple(examples_in(deployable.archive))
        with _in_store(site, deployable) as path, in_its_place(site.server, version):
            status = register_stored(site.server, path, workers=options.workers or None)
            if problem := Prober(site.client, site.model, examples).predict_each(version.version):
                raise ServerError(f"{version} was not deployed: {problem}")
        return f"{status.ready_workers} workers, {len(examples)} examples answered as validated"

    site.perform(_in_its_place(deployable), work)
    site.contents[version] = server_state.content_of(deployable.archive)
    return Outcome(site.model, version.version, None, "deployed", tuple(site.events))


@contextmanager
def _in_store(site: ModelServer, deployable: Deployable) -> Iterator[Path]:
    """Yield the archive's path in the model store; a copy that was needed is taken back after an error.

    No journal is needed: after a kill, the copy is what the next deploy of the same archive finds in the store.
    """
    copies: list[Copy] = []
    try:
        if deployable.stored:
            copy_into_store(site.store, deployable, copies.append)
        yield site.store / deployable.file_name
    except BaseException:
        take_back_copies(copies)
        raise
