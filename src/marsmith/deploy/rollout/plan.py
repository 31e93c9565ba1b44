"""Plans: the steps that bring a version into service or roll back to one. No side effects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from marsmith.state.journal import Change, Kind, Release

Action = Literal[
    "verify",
    "store",
    "register",
    "ready",
    "probe",
    "shadow",
    "canary",
    "switch",
    "plain",
    "watch",
    "accept",
    "drain",
    "scale",
    "unregister",
    "leave",
]
Remedy = Literal["undo", "finish", "leave"]

# Before these steps a change has not given its target workers, or not made it the default version yet.
_UNREADY: frozenset[str] = frozenset({"verify", "store", "register", "ready"})
_UNSWITCHED = _UNREADY | {"probe", "shadow", "canary"}
# Before these steps a change has been accepted.
_ACCEPTED: frozenset[str] = frozenset({"promote", "drain", "scale", "unregister"})
# In these the default version may be the one before or the target.
_SWITCHING: frozenset[str] = frozenset({"switch", "promote"})


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        action: kind of step.
        version: the version that the step changes.
        detail: description for people.
    """

    action: Action
    version: str
    detail: str


@dataclass(frozen=True)
class Target:
    """The version to switch to.

    Attributes:
        kind: deploy or rollback.
        model: model name.
        release: its version, archive, digest and number of workers (0: as in its model config).
        examples: number of examples in its archive.
        stored: whether its archive must be copied into the model store first.
    """

    kind: Kind
    model: str
    release: Release
    examples: int
    stored: bool = False


@dataclass(frozen=True)
class Situation:
    """State of the model on a server, and its earlier releases.

    Attributes:
        default: the default version; None if the model is not registered.
        workers: number of workers by registered version.
        releases: earlier default versions, the latest last.
    """

    default: str | None = None
    workers: Mapping[str, int] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()


@dataclass(frozen=True)
class OldVersions:
    """Changes of earlier versions.

    Attributes:
        scale: versions that lose their workers and stay registered.
        unregister: versions that are unregistered.
    """

    scale: tuple[str, ...]
    unregister: tuple[str, ...]


def plan(
    target: Target, seen: Situation, *, keep: int, watch_s: float, shares: tuple[Step, ...] = ()
) -> tuple[Step, ...]:
    """Return the steps from ``seen`` to a server that answers with ``target``.

    None if it already does, with all options.

    Args:
        target: the version to switch to.
        seen: the current state.
        keep: number of earlier versions that stay registered.
        watch_s: duration of the watch of errors and latency after the switch, in seconds; 0: no watch.
        shares: steps that give the target its requests share by share, in place of the watch.
    """
    if seen.default == target.release.version:
        return tuple(_scaling(target, seen))
    if shares:
        return (*preparation(target, seen), *shares, *_promotion(target, seen), *tidying(target, seen, keep))
    return (*preparation(target, seen), *_switch(target, seen, watch_s), *tidying(target, seen, keep))


def tidying(target: Target, seen: Situation, keep: int) -> Iterator[Step]:
    """Return the steps after a version has been accepted; ``seen.default`` is the version before it."""
    if seen.default:
        yield Step("drain", seen.default, f"wait until {seen.default} has answered all its requests")
    retired = retirement(target, seen, keep)
    for version in retired.scale:
        yield Step("scale", version, f"drain {version} and stop its workers; it stays registered")
    for version in retired.unregister:
        yield Step("unregister", version, f"drain {version} and unregister it; its archive stays in the model store")


def retirement(target: Target, seen: Situation, keep: int) -> OldVersions:
    """Decide what to do with earlier default versions.

    The latest of them keeps its workers, so that a rollback takes one call. Older ones stay registered without workers,
    ``keep`` versions in all. Versions that were never the default are not changed. A version that is rolled back from
    is unregistered.
    """
    new = target.release.version
    left = [seen.default] if seen.default else []
    versions = [release.version for release in seen.releases]
    order = [*left, *(version for version in reversed(versions) if version not in {new, seen.default})]
    earlier = [version for version in order if version in seen.workers and version != new]
    bad = [version for version in earlier if version in left] if target.kind == "rollback" else []
    rest = [version for version in earlier if version not in bad]
    scale = tuple(version for version in rest[1:keep] if seen.workers[version])
    return OldVersions(scale, (*bad, *rest[keep:]))


def recovery(change: Change) -> Remedy:
    """Decide how to recover from an interrupted change.

    Before the switch it is undone. After the switch a deploy is finished if the new version had been accepted, and
    undone otherwise. A rollback goes to a version that has proved itself, so it is finished after the switch.
    """
    accepted = _ACCEPTED | ({"switch", "accept"} if change.kind == "rollback" else set())
    return "finish" if change.step in accepted else "undo"


def taken_over(change: Change, seen: Situation) -> str | None:
    """Return which change by someone else since the interruption the recovery must not overrule.

    None if the change may be undone or finished.
    """
    version, before = change.target.version, change.before
    if recovery(change) == "finish":
        may_be_default = {version, before.version} if change.step in _SWITCHING and before else {version}
        if version not in seen.workers:
            return f"{version} has been unregistered since: this is not undone"
        if seen.default not in may_be_default:
            return f"{seen.default} has been made the default version since: this is not undone"
        return None
    if before and seen.default == version:
        if change.step in _UNSWITCHED:
            return f"{version} has been made the default version since: this is not undone"
        if before.version not in seen.workers:
            return f"{before.version} has been unregistered since: {version} stays the default version"
    if version in seen.workers and _was_scaled(change, seen.workers[version]):
        return f"{version} has been given {seen.workers[version]} workers since: it stays registered with them"
    return None


def _was_scaled(change: Change, workers: int) -> bool:
    """Return whether someone else has set the workers of the target. They are unknown before it was ready."""
    given = {change.workers_before, change.target.workers} if change.registered_before else {change.target.workers}
    return change.step not in _UNREADY and workers not in given


def untouched(change: Change, seen: Situation) -> Situation:
    """Return ``seen`` with only those versions, besides the target, that are unchanged since the change began."""
    if change.workers is None:
        return seen
    then = {**change.workers, change.target.version: seen.workers.get(change.target.version, 0)}
    # A version without workers is as this change, or someone else, would have left it.
    kept = {name: count for name, count in seen.workers.items() if name in then and count in {0, then[name]}}
    return replace(seen, workers=kept)


def after_recovery(change: Change, remedy: Remedy, seen: Situation) -> Situation:
    """Return the state after an interrupted change has been undone or finished."""
    version, before = change.target.version, change.before
    if remedy == "leave":
        return seen
    if remedy == "finish":
        return replace(seen, default=version)
    kept = {name: count for name, count in seen.workers.items() if change.registered_before or name != version}
    left = before.version if before and seen.default == version else seen.default
    return replace(seen, workers=kept, default=left if left in kept else None)


def rollback_version(default: str | None, releases: Sequence[Release]) -> str | None:
    """Return the default version before ``default``; None if none is known."""
    versions = [release.version for release in releases]
    if default in versions:
        versions = versions[: versions.index(default)]
    return versions[-1] if versions else None


def _scaling(target: Target, seen: Situation) -> Iterator[Step]:
    version, wanted = target.release.version, target.release.workers
    if target.kind == "deploy" and wanted and wanted != seen.workers[version]:
        yield Step("scale", version, f"give it {wanted} workers instead of {seen.workers[version]}, all READY")


def preparation(target: Target, seen: Situation) -> Iterator[Step]:
    """Return the steps before a version gets requests of users."""
    release = target.release
    version, there = release.version, release.version in seen.workers
    if not there or target.kind == "deploy":
        yield Step("verify", version, f"verify {release.archive}: structure, digests, examples")
    if target.stored:
        yield Step("store", version, f"copy it into the model store as {release.archive}")
    if not there:
        yield Step("register", version, f"register {release.archive}; {_answers(seen)}")
    count = f"{release.workers} workers" if release.workers else "as many workers as its model config says"
    yield Step("ready", version, f"wait until {version} has {count}, all READY")
    yield Step("probe", version, _questions(target))


def _questions(target: Target) -> str:
    """Describe the probes. A rollback is urgent, so latencies are not compared."""
    how = "alone and together, and compare its latency" if target.kind == "deploy" else "alone"
    examples = (
        f"its {target.examples} examples by name, {how}" if target.examples else "nothing, because it has no examples"
    )
    return f"ask {target.release.version} {examples}"


def _answers(seen: Situation) -> str:
    return f"{seen.default} continues to answer" if seen.default else "the model is new"


def _switch(target: Target, seen: Situation, watch_s: float) -> Iterator[Step]:
    version = target.release.version
    if seen.default:
        yield Step("switch", version, f"make {version} the default version instead of {seen.default}")
    if watch_s > 0:
        way_back = f"on trouble back to {seen.default}" if seen.default else "on trouble it is unregistered"
        yield Step("watch", version, f"watch errors and latency for {watch_s:g} s; {way_back}")
    yield Step("accept", version, f"accept {version}: from here on an interrupted {target.kind} is finished")


def _promotion(target: Target, seen: Situation) -> Iterator[Step]:
    version = target.release.version
    yield Step("switch", version, f"make {version} the default version instead of {seen.default}")
    yield Step("plain", version, "send all requests to the default version")
    yield Step("accept", version, f"accept {version}: from here on an interrupted {target.kind} is finished")
