"""Bring a new version into service with no request lost, and go back to the one before.

Whatever was interrupted before is finished or undone first. One process at a time changes a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Literal

from marsmith import run_state, server_state
from marsmith.archive import Archive
from marsmith.client import Client
from marsmith.deploy_journal import JournalFile
from marsmith.errors import UsageError
from marsmith.formats.deploy_journal import Change, Journal, Release
from marsmith.model_store import examples_in
from marsmith.names import archive_file_name, check_model_name, check_model_version
from marsmith.probes import Prober
from marsmith.rest import Transport
from marsmith.retries import NO_RETRIES
from marsmith.rollout import Options, Rollout
from marsmith.rollout_plan import Remedy, Step, Target, plan, recovery, rollback_version
from marsmith.rollout_recovery import recover
from marsmith.rollout_site import Event, Site, unheard
from marsmith.rollout_store import Deployable, find
from marsmith.rollout_watch import Observer
from marsmith.settings import Project

__all__ = ["Event", "Options", "Outcome", "Planned", "deploy", "plan_deploy", "plan_rollback", "rollback"]


@dataclass(frozen=True)
class Planned:
    """What would be done.

    Attributes:
        model: model name.
        version: the version to go to.
        before: the default version now; None where the model is not registered.
        interrupted: an earlier change that is undone or finished first, and which of the two.
        steps: in order; none where the version is the default already.
    """

    model: str
    version: str
    before: str | None
    interrupted: tuple[Change, Remedy] | None
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        model: model name.
        version: the version that answers now.
        before: the default version before; None where the model was not registered.
        result: ``unchanged`` where the version was the default already.
        events: every step with its time, those that recovered from an interruption first.
    """

    model: str
    version: str
    before: str | None
    result: Literal["deployed", "rolled back", "unchanged"]
    events: tuple[Event, ...]


def deploy(
    project: Project,
    reference: str,
    options: Options | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Bring the version in an archive into service, or leave everything as it was.

    Args:
        project: whose server runs.
        reference: path of the archive, or its name in the model store.
        options: how.
        on_event: told before and after every step.
        wait_s: how long to wait where another process deploys the model, in seconds.

    Raises:
        NotRunningError: no server runs.
        UsageError: there is no such archive, or its version is there with other bytes.
        ArchiveError: it is damaged or not what it says.
        ServerError: it did not prove itself, or another process deploys the model; the message says why.
    """
    options = options or Options()
    deployable = find(project, reference)
    with _site(project, deployable.archive.manifest.model_name, on_event, wait_s) as site:
        journal = recover(site, site.file.read())
        target = _deploy_target(site, deployable, options, journal)
        return _roll_out(site, target, options, journal, deployable)


def rollback(
    project: Project,
    model: str,
    *,
    to: str | None = None,
    keep: int = 2,
    on_event: Callable[[Event], None] | None = None,
    wait_s: float = 0.0,
) -> Outcome:
    """Make an earlier version the default again, and take off the one that is left.

    Args:
        project: whose server runs.
        model: model name.
        to: the version; None: the one that was the default before.
        keep: how many earlier versions stay registered.
        on_event: told before and after every step.
        wait_s: how long to wait where another process deploys the model, in seconds.

    Raises:
        NotRunningError: no server runs.
        UsageError: no earlier version is known, or its archive is gone.
        ServerError: the earlier version does not answer as it did; nothing was changed.
    """
    options = Options(keep=keep, watch_s=0.0)
    with _site(project, check_model_name(model), on_event, wait_s) as site:
        journal = recover(site, site.file.read())
        target = _rollback_target(site, to, journal)
        return _roll_out(site, target, options, journal, _stored_archive(site, target))


def plan_deploy(project: Project, reference: str, options: Options | None = None) -> Planned:
    """Return what ``deploy`` would do, and do nothing. Errors as there."""
    options = options or Options()
    deployable = find(project, reference)
    with Client.for_project(project) as client:
        site = Site(project, client, JournalFile.of(project, deployable.archive.manifest.model_name))
        journal = site.file.read()
        return _planned(site, _deploy_target(site, deployable, options, journal), options, journal)


def plan_rollback(project: Project, model: str, *, to: str | None = None, keep: int = 2) -> Planned:
    """Return what ``rollback`` would do, and do nothing. Errors as there."""
    with Client.for_project(project) as client:
        site = Site(project, client, JournalFile.of(project, model))
        journal = site.file.read()
        return _planned(site, _rollback_target(site, to, journal), Options(keep=keep, watch_s=0.0), journal)


@contextmanager
def _site(project: Project, model: str, on_event: Callable[[Event], None] | None, wait_s: float) -> Iterator[Site]:
    file = JournalFile.of(project, model)
    with file.locked(wait_s), Client.for_project(project) as client:
        site = Site(project, client, file, on_event or unheard)
        try:
            yield site
        finally:
            if site.events:
                # What was done outlives a restart of the server, also where the deploy failed and was undone.
                server_state.record(project)


def _planned(site: Site, target: Target, options: Options, journal: Journal) -> Planned:
    seen = site.situation(journal)
    steps = plan(target, seen, keep=options.keep, watch_s=options.watch_s)
    interrupted = (journal.change, recovery(journal.change)) if journal.change else None
    return Planned(site.model, target.release.version, seen.default, interrupted, steps)


def _roll_out(site: Site, target: Target, options: Options, journal: Journal, deployable: Deployable | None) -> Outcome:
    seen, version = site.situation(journal), target.release.version
    steps = plan(target, seen, keep=options.keep, watch_s=options.watch_s)
    if not steps:
        return Outcome(site.model, version, version, "unchanged", tuple(site.events))
    state = run_state.read(site.project)
    transport = Transport(state.ca_file)
    # A probe that is repeated would hide what users see.
    with closing(transport), Client.for_project(site.project, retries=NO_RETRIES) as client:
        observer = Observer(state, site.model, version, transport)
        prober = Prober(client, site.model, tuple(examples_in(deployable.archive)) if deployable else ())
        Rollout(site, target, seen, options, prober, observer, deployable).run(steps, journal)
    result: Literal["deployed", "rolled back"] = "deployed" if target.kind == "deploy" else "rolled back"
    return Outcome(site.model, version, seen.default, result, tuple(site.events))


def _deploy_target(site: Site, deployable: Deployable, options: Options, journal: Journal) -> Target:
    version = deployable.archive.manifest.model_version
    known = {release.version: release for release in journal.releases}.get(version)
    versions = site.versions()
    if version in versions and known and known.digest not in {None, deployable.digest}:
        raise UsageError(
            f"{site.model}:{version} is registered from an archive with other bytes",
            tip="give the new archive a version of its own",
        )
    workers = options.workers or (known.workers if known and version in versions else 0)
    release = Release(version, deployable.file_name, deployable.digest, workers)
    return Target("deploy", site.model, release, _example_count(deployable.archive), deployable.stored)


def _rollback_target(site: Site, to: str | None, journal: Journal) -> Target:
    default = site.situation(journal).default
    version = check_model_version(to) if to else rollback_version(default, journal.releases)
    if version is None:
        raise UsageError(
            f"no version of {site.model} is known that was the default before {default}",
            tip=f"name one that is registered or in the model store: marsmith rollback {site.model} --to VERSION",
        )
    release = _known_release(site, version, journal)
    path = site.store / release.archive
    count = _example_count(Archive.open(path)) if path.exists() else 0
    return Target("rollback", site.model, release, count)


def _known_release(site: Site, version: str, journal: Journal) -> Release:
    """Find a version: among those that were deployed, those that are registered, or in the model store."""
    known = {release.version: release for release in journal.releases}
    if version in known:
        return known[version]
    status = site.versions().get(version)
    if status:
        return Release(version, status.archive_url, None, status.min_workers)
    name = archive_file_name(site.model, version)
    if (site.store / name).exists():
        return Release(version, name, None, 0)
    raise UsageError(
        f"no version {version} of {site.model} was deployed, is registered or lies in the model store",
        tip=f"deployed were: {', '.join(known) or 'none'}",
    )


def _stored_archive(site: Site, target: Target) -> Deployable | None:
    """Open the archive of a version to go back to; None where it is gone and the version is still registered."""
    path = site.store / target.release.archive
    if not path.exists():
        return None
    archive = Archive.open(path)
    return Deployable(archive, path.name, target.release.digest or "", stored=False)


def _example_count(archive: Archive) -> int:
    from marsmith.archive.verify import read_examples

    return len(read_examples(archive) or [])
