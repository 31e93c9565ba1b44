"""Deploy a new version without losing a request, and roll back to the one before.

An interrupted change is finished or undone first. One process at a time changes a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

from marsmith import run_state
from marsmith.archive import Archive
from marsmith.archive.admit import digest_of
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
    recovery,
    rollback_version,
    taken_over,
)
from marsmith.deploy.rollout.probes import Prober
from marsmith.deploy.rollout.recovery import recover
from marsmith.deploy.rollout.site import Event, ModelServer, ignore_event
from marsmith.deploy.rollout.steps import KEEP, Options, Rollout, scale_up
from marsmith.deploy.rollout.store import Deployable, find, model_of
from marsmith.deploy.rollout.watch import Observer
from marsmith.errors import ServerError, UsageError
from marsmith.names import ModelVersion, archive_file_name, check_model_name, check_model_version
from marsmith.project import Project
from marsmith.server import state as server_state
from marsmith.server.left_out_versions import holds_place, in_its_place, refuse_left_out
from marsmith.server.registration import register_stored
from marsmith.state.journal import Change, Journal, JournalFile, Release
from marsmith.state.version_bytes import bound_digest, check_bytes, check_release

__all__ = ["KEEP", "Event", "Options", "Outcome", "Planned", "deploy", "plan_deploy", "plan_rollback", "rollback"]


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
        result: ``unchanged`` if the version was the default already, ``scaled`` if it got more workers.
        events: every step with its duration, beginning with those of a recovery.
    """

    model: str
    version: str
    before: str | None
    result: Literal["deployed", "rolled back", "unchanged", "scaled"]
    events: tuple[Event, ...]


def deploy(
    project: Project,
    reference: str,
    options: Options | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Bring the version of an archive into service, or restore the state before.

    Args:
        project: the project of the running server.
        reference: path of the archive, or its name in the model store.
        options: options of the deploy.
        on_event: called before and after every step.
        wait_s: maximum wait for another process that deploys the model, in seconds.

    Raises:
        NotRunningError: the server is not running.
        UsageError: the archive does not exist, or its version exists with another digest.
        ArchiveError: the archive is damaged or its digests do not match.
        ServerError: the version failed, or another process deploys the model; the message says why.
    """
    options = options or Options()
    with _site(project, model_of(project, reference), on_event, wait_s) as site:
        before = site.file.read()
        # The recovery comes first, because what it finds or removes decides what the reference means.
        journal = recover(site, before)
        deployable = _meant(site, find(project, reference, before.change))
        if _is_kept_for(site, deployable):
            return _bring_back(site, deployable, options)
        target = _deploy_target(site, deployable, options, journal)
        return _roll_out(site, target, options, journal, deployable)


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
        journal = recover(site, site.file.read())
        target = _rollback_target(site, to, journal)
        return _roll_out(site, target, options, journal, _stored_archive(site, target.release))


def plan_deploy(project: Project, reference: str, options: Options | None = None) -> Planned:
    """Return the plan of ``deploy`` without any change. Raises the same errors."""
    options = options or Options()
    with Client.for_project(project) as client:
        site = ModelServer(project, client, JournalFile.of(project, model_of(project, reference)))
        journal = site.file.read()
        deployable = _meant(site, find(project, reference, journal.change))
        if _is_kept_for(site, deployable):
            version = deployable.version.version
            return Planned(site.model, version, None, None, (_in_its_place(version),))
        return _planned(site, _deploy_target(site, deployable, options, journal), options, journal)


def plan_rollback(project: Project, model: str, *, to: str | None = None, keep: int = KEEP) -> Planned:
    """Return the plan of ``rollback`` without any change. Raises the same errors."""
    with Client.for_project(project) as client:
        site = ModelServer(project, client, JournalFile.of(project, model))
        journal = site.file.read()
        return _planned(site, _rollback_target(site, to, journal), Options(keep=keep, watch_s=0.0), journal)


@contextmanager
def _site(
    project: Project, model: str, on_event: Callable[[Event], None] | None, wait_s: float
) -> Iterator[ModelServer]:
    file = JournalFile.of(project, model)
    with file.locked(wait_s), Client.for_project(project) as client:
        site = ModelServer(project, client, file, on_event or ignore_event)
        try:
            yield site
        finally:
            if site.events:
                # The change must outlive a restart of the server, even if the deploy failed and was undone.
                server_state.record(project, site.contents)


def _planned(site: ModelServer, target: Target, options: Options, journal: Journal) -> Planned:
    seen, interrupted = site.situation(journal), None
    if journal.change:
        remedy: Remedy = "leave" if taken_over(journal.change, seen) else recovery(journal.change)
        interrupted = journal.change, remedy
        seen = after_recovery(journal.change, remedy, seen)
    steps = plan(target, seen, keep=options.keep, watch_s=options.watch_s)
    return Planned(site.model, target.release.version, seen.default, interrupted, steps)


def _roll_out(
    site: ModelServer, target: Target, options: Options, journal: Journal, deployable: Deployable | None
) -> Outcome:
    seen, version = site.situation(journal), target.release.version
    steps = plan(target, seen, keep=options.keep, watch_s=options.watch_s)
    if not steps:
        return Outcome(site.model, version, version, "unchanged", tuple(site.events))
    if seen.default == version:
        scale_up(site, steps[0], target.release, journal)
        return Outcome(site.model, version, version, "scaled", tuple(site.events))
    state = run_state.read(site.project)
    transport = Transport(state.ca_file)
    # A retry would hide failures that users see.
    with closing(transport), Client.of(state, retries=NO_RETRIES) as client:
        prober = Prober(client, site.model, tuple(examples_in(deployable.archive)) if deployable else ())
        observer = Observer(state, site.model, version, transport, prober)
        Rollout(site, target, seen, options, prober, observer, deployable).run(steps, journal)
    result: Literal["deployed", "rolled back"] = "deployed" if target.kind == "deploy" else "rolled back"
    return Outcome(site.model, version, seen.default, result, tuple(site.events))


def _deploy_target(site: ModelServer, deployable: Deployable, options: Options, journal: Journal) -> Target:
    version = deployable.version
    check_bytes(site.project, version, deployable.archive.path, deployable.digest)
    known = {release.version: release for release in journal.releases}.get(version.version)
    status = site.versions().get(version.version)
    if status:
        refuse_left_out(site.project, status)
    if options.workers and status and status.default and options.workers < status.min_workers:
        raise UsageError(
            f"{version} is the default version and has {status.min_workers} workers: taking some away cuts requests",
            tip=f"marsmith scale {version} --workers {options.workers} --drain 60",
        )
    kept = (status.min_workers if status.default or not known else known.workers) if status else 0
    release = Release(version.version, deployable.file_name, deployable.digest, options.workers or kept)
    return Target("deploy", site.model, release, _example_count(deployable.archive), deployable.stored)


def _is_kept_for(site: ModelServer, deployable: Deployable) -> bool:
    """Whether this version is the default and left out of the server.

    It has no users then, so there is nothing to watch.
    """
    status = site.versions().get(deployable.version.version)
    return bool(status and status.default and not deployable.stored and holds_place(site.project, status))


def _in_its_place(version: str) -> Step:
    return Step("register", version, f"register {version} in its reserved place, and check its examples")


def _bring_back(site: ModelServer, deployable: Deployable, options: Options) -> Outcome:
    """Register a version that was left out, after it is fixed. It becomes the default again after its examples pass.

    Raises:
        ServerError: the version does not answer its examples; it stays left out.
    """
    version = deployable.version
    check_bytes(site.project, version, deployable.archive.path, deployable.digest)

    def work() -> str:
        examples = tuple(examples_in(deployable.archive))
        with in_its_place(site.project, site.client, version):
            path = site.store / deployable.file_name
            status = register_stored(site.project, site.client, path, workers=options.workers or None)
            if problem := Prober(site.client, site.model, examples).predict_each(version.version):
                raise ServerError(f"{version} was not deployed: {problem}")
        return f"{status.ready_workers} workers, {len(examples)} examples answered as validated"

    site.perform(_in_its_place(version.version), work)
    site.contents[version] = server_state.content_of(deployable.archive)
    return Outcome(site.model, version.version, None, "deployed", tuple(site.events))


def _meant(site: ModelServer, deployable: Deployable) -> Deployable:
    """Return the archive, after a check that it belongs to the locked model."""
    if deployable.version.name != site.model:
        raise UsageError(
            f"{deployable.archive.path} is an archive of {deployable.version.name}, and not of {site.model}"
        )
    return deployable


def _rollback_target(site: ModelServer, to: str | None, journal: Journal) -> Target:
    default = site.situation(journal).default
    version = check_model_version(to) if to else rollback_version(default, journal.releases)
    if version is None:
        raise UsageError(
            f"no version of {site.model} is known that was the default before {default}",
            tip=f"name one that is registered or in the model store: marsmith rollback {site.model} --to VERSION",
        )
    if status := site.versions().get(version):
        refuse_left_out(site.project, status)
    release = _known_release(site, version, journal)
    archive = _stored_archive(site, release)
    return Target("rollback", site.model, release, _example_count(archive.archive) if archive else 0)


def _known_release(site: ModelServer, version: str, journal: Journal) -> Release:
    """Find a version among the deployed ones, the registered ones, and the model store."""
    known = {release.version: release for release in journal.releases}
    if version in known:
        return known[version]
    status = site.versions().get(version)
    if status:
        bound = bound_digest(site.project, ModelVersion(site.model, version))
        return Release(version, status.archive_url.rpartition("/")[2], bound, status.min_workers)
    name = archive_file_name(site.model, version)
    if (site.store / name).exists():
        return Release(version, name, digest_of(Archive.open(site.store / name)), 0)
    raise UsageError(
        f"no version {version} of {site.model} was deployed, is registered or lies in the model store",
        tip=f"deployed were: {', '.join(known) or 'none'}",
    )


def _stored_archive(site: ModelServer, release: Release) -> Deployable | None:
    """Open the archive of a version to roll back to. None if it is gone and the version is still registered.

    Raises:
        OtherBytesError: the archive has another digest than the journalled one; a restart could not restore the
            version.
    """
    path = site.store / release.archive
    if not path.exists():
        return None
    archive = Archive.open(path)
    digest = digest_of(archive)
    check_release(site.model, release, path, digest)
    return Deployable(archive, path.name, digest, stored=False)


def _example_count(archive: Archive) -> int:
    from marsmith.archive.verify import read_examples

    return len(read_examples(archive) or [])
