"""Recovery of a change that failed or was interrupted: undo it before its version was accepted, finish it after."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from marsmith.deploy.rollout.plan import Step, Target, recovery, taken_over, tidying, untouched
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.rollout.store import take_back
from marsmith.server import state as server_state
from marsmith.state.journal import Change, Journal, Release

# Before these steps the new version had no users, and there is nothing to drain.
_UNUSED = frozenset({"store", "register", "ready", "probe"})


def recover(site: ModelServer, journal: Journal) -> Journal:
    """Undo or finish an interrupted change, and return the journal without it.

    If someone has changed the server on purpose since, the change is only closed.

    Raises:
        MarsmithError: the recovery failed; the journal keeps the interrupted change.
    """
    change = journal.change
    if change is None:
        return journal
    others = taken_over(change, site.situation(journal))
    if others:
        _send_all_to_default(site)
        text = (
            f"the {change.kind} of {change.target.version} that stopped at '{change.step}' is not continued: {others}"
        )
        site.perform(Step("leave", change.target.version, text), lambda: None)
        return _end(site, journal)
    return undo(site, journal, change) if recovery(change) == "undo" else finish(site, journal, change)


def undo(site: ModelServer, journal: Journal, change: Change) -> Journal:
    """Restore the state before the change: default version, registered versions and model store."""
    version = change.target.version
    _send_all_to_default(site)
    if change.before and site.situation(journal).default == version:
        back = f"make {change.before.version} the default version again"
        before = change.before
        site.perform(Step("switch", before.version, back), lambda: _make_default(site, before))
    if version in site.versions():
        site.perform(_leaving(change), lambda: _leave(site, change))
    left = take_back(site.store, change)
    if left:
        site.perform(Step("leave", version, left), lambda: None)
    return _end(site, journal)


def finish(site: ModelServer, journal: Journal, change: Change) -> Journal:
    """Take the remaining steps after a version has been accepted.

    A version on trial becomes the default first, so that no user goes back to the version before in between.
    """
    version = change.target.version
    if site.situation(journal).default != version:
        step = Step("switch", version, f"make {version} the default version")
        site.perform(step, lambda: _make_default(site, change.target))
    _send_all_to_default(site)
    journal = journal.accepted()
    target = Target(change.kind, site.model, change.target, examples=0)
    before = change.before.version if change.before else None
    seen = replace(untouched(change, site.situation(journal)), default=before)
    for step in tidying(target, seen, change.keep):
        journal = journal.at(step.action)
        site.file.write(journal)
        site.perform(step, partial(tidy, site, step))
    return _end(site, journal)


def tidy(site: ModelServer, step: Step) -> str | None:
    """Take one of the steps after a version has been accepted. Requests in flight are waited for and never cut."""
    left = site.drained(step.version)
    if left:
        return f"{left}; it is not changed"
    if step.action == "scale" and step.version in site.versions():
        site.client.scale(site.model, version=step.version, min_workers=0)
    if step.action == "unregister":
        site.unregister(step.version)
    return None


def _send_all_to_default(site: ModelServer) -> None:
    share = site.front.share_of(site.model)
    if share is not None:
        step = Step("plain", share.version, "send all requests to the default version")
        site.perform(step, lambda: site.front.set_share(site.model, None))
    for of_canary in (False, True):
        copies = site.front.copies_of(site.model, of_canary=of_canary)
        if copies is not None:
            step = Step("plain", copies.version, f"copy no more requests to {copies.version or 'the default version'}")
            stop = partial(site.front.set_copies, site.model, None, of_canary=of_canary)
            site.perform(step, stop)


def _end(site: ModelServer, journal: Journal) -> Journal:
    ended = journal.ended()
    site.file.write(ended)
    return ended


def _leaving(change: Change) -> Step:
    version = change.target.version
    if change.registered_before:
        return Step("scale", version, f"drain {version} and restore its number of workers")
    return Step("unregister", version, f"drain {version} and unregister it")


def _make_default(site: ModelServer, release: Release) -> None:
    """Switch to a version. A server that was restarted since may not have it, so it is registered first."""
    if release.version not in site.versions():
        site.register(release)
    site.make_ready(release)
    site.client.set_default(site.model, release.version)
    # A drain follows. A server that ends in it must come back with this default version.
    server_state.record(site.project, site.contents)


def _leave(site: ModelServer, change: Change) -> str | None:
    """Unregister the new version, or restore its earlier state; its requests in flight are answered first."""
    version = change.target.version
    left = None if change.step in _UNUSED else site.drained(version)
    if not change.registered_before:
        site.unregister(version)
    elif site.describe(version).min_workers != change.workers_before:
        site.client.scale(site.model, version=version, min_workers=change.workers_before)
    return f"{left}; its requests were cut" if left else None
