"""Undo a change that failed or was interrupted before its version was accepted; finish one that was after."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from marsmith.deploy.rollout.plan import Step, Target, recovery, taken_over, tidying, untouched
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.rollout.store import take_back
from marsmith.state.journal import Change, Journal, Release

# Before these the new version had no users, and there is nothing to drain.
_UNUSED = frozenset({"store", "register", "ready", "probe"})


def recover(site: ModelServer, journal: Journal) -> Journal:
    """Undo or finish what was interrupted, and return the journal with nothing under way.

    What somebody has done on purpose since stays: then the change is only ended.

    Raises:
        MarsmithError: it could not be done; the journal still says what is under way.
    """
    change = journal.change
    if change is None:
        return journal
    others = taken_over(change, site.situation(journal))
    if others:
        text = f"the {change.kind} of {change.target.version} that stopped at '{change.step}' goes no further: {others}"
        site.perform(Step("leave", change.target.version, text), lambda: None)
        return _end(site, journal)
    return undo(site, journal, change) if recovery(change) == "undo" else finish(site, journal, change)


def undo(site: ModelServer, journal: Journal, change: Change) -> Journal:
    """Bring back what was there before the change: the default version, what was registered, and the model store."""
    version = change.target.version
    if change.before and site.situation(journal).default == version:
        back = f"make {change.before.version} the default version again"
        before = change.before
        site.perform(Step("switch", before.version, back), lambda: _make_default(site, before))
    if version in site.versions():
        site.perform(_leaving(change), lambda: _leave(site, change))
    left = take_back(site.project, change)
    if left:
        site.perform(Step("leave", version, left), lambda: None)
    return _end(site, journal)


def finish(site: ModelServer, journal: Journal, change: Change) -> Journal:
    """Do what was left to do after a version had been accepted."""
    version = change.target.version
    if site.situation(journal).default != version:
        step = Step("switch", version, f"make {version} the default version")
        site.perform(step, lambda: _make_default(site, change.target))
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
    """Do one of the steps after a version has been accepted; work in hand is waited for and never cut."""
    left = site.drained(step.version)
    if left:
        return f"{left}; it is left as it is"
    if step.action == "scale" and step.version in site.versions():
        site.client.scale(site.model, version=step.version, min_workers=0)
    if step.action == "unregister":
        site.unregister(step.version)
    return None


def _end(site: ModelServer, journal: Journal) -> Journal:
    ended = journal.ended()
    site.file.write(ended)
    return ended


def _leaving(change: Change) -> Step:
    version = change.target.version
    if change.registered_before:
        return Step("scale", version, f"drain {version} and give it the workers back that it had")
    return Step("unregister", version, f"drain {version} and unregister it")


def _make_default(site: ModelServer, release: Release) -> None:
    """Switch to a version; a server that was restarted since may not have it."""
    if release.version not in site.versions():
        site.register(release)
    site.make_ready(release)
    site.client.set_default(site.model, release.version)


def _leave(site: ModelServer, change: Change) -> str | None:
    """Take the new version off, or leave it as it was before; what users asked of it is answered first."""
    version = change.target.version
    left = None if change.step in _UNUSED else site.drained(version)
    if not change.registered_before:
        site.unregister(version)
    elif site.describe(version).min_workers != change.workers_before:
        site.client.scale(site.model, version=version, min_workers=change.workers_before)
    return f"{left}; it was cut" if left else None
