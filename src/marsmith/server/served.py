"""Decide what a start serves, from the archives of the store and the state of the previous server.

The functions here access neither files nor a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from marsmith.server.placeholder import stands_in
from marsmith.state.served import (
    ArchiveBytes,
    Parameters,
    ServedModel,
    ServedVersion,
    ServerState,
    Unregistered,
    Version,
)

if TYPE_CHECKING:
    from marsmith.archive.store import StoredArchive
    from marsmith.client.management import VersionStatus
    from marsmith.run_state import LeftOut

_RELEASE = re.compile(r"\d+|[a-zA-Z]+")


@dataclass(frozen=True)
class Serving:
    """What a start serves.

    Attributes:
        archives: archives to load, with the default version of each model first, because TorchServe keeps the first.
        defaults: the default version of each model.
        workers: minimum and maximum number of workers of versions that were scaled in the previous server.
        placeholders: left-out default versions. A placeholder without workers is registered for each, so that a request
            without a version is refused and no other version answers it.
        notes: information for the user who starts the server, one sentence each.
        kept_defaults: default versions of the previous server; no other version takes their place.
    """

    archives: tuple[StoredArchive, ...]
    defaults: Mapping[str, str] = field(default_factory=dict)
    workers: Mapping[Version, tuple[int, int]] = field(default_factory=dict)
    placeholders: tuple[Version, ...] = ()
    notes: tuple[str, ...] = ()
    kept_defaults: frozenset[Version] = frozenset()


def version_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions numerically: 1.9 before 1.10, and 2.0rc1 before 2.0."""
    parts = [(1, int(part), "") if part.isdigit() else (-1, 0, part) for part in _RELEASE.findall(version)]
    return (*parts, (0, 0, ""))


def plan_serving(
    stored: Sequence[StoredArchive],
    state: ServerState | None,
    configured: Mapping[Version, Parameters],
    *,
    left_out: Sequence[LeftOut] = (),
    with_new: bool = True,
    renewed: Collection[Version] = (),
) -> Serving:
    """Decide what to serve.

    Args:
        stored: servable archives; of two archives of one version the first counts.
        state: state of the previous server; None if there is none.
        configured: values that the files alone give to each version, as far as known.
        left_out: archives of the store that cannot be served.
        with_new: whether to serve archives that the previous server did not have.
        renewed: unregistered versions whose archives have changed since; they count as new.
    """
    state = state or ServerState()
    left = state.unregistered.keys() - set(renewed)
    archives = {archive.version: archive for archive in reversed(stored)}
    wanted = {version for version in archives if state.version(version) or (with_new and version not in left)}
    placeholders = _left_out_defaults(wanted, state, left_out)
    defaults, default_notes = _defaults(wanted, state, placeholders)
    workers, worker_notes = _workers(wanted, state, configured)
    workers |= dict.fromkeys(placeholders, (0, 0))
    order = sorted(wanted, key=lambda version: (version[0], version[1] != defaults[version[0]], version[1]))
    notes = (*_absent(archives, state, left_out, left), *default_notes, *worker_notes)
    kept = frozenset((name, model.default) for name, model in state.models.items()) & wanted
    return Serving(tuple(archives[version] for version in order), defaults, workers, placeholders, notes, kept)


def without_version(serving: Serving, version: Version) -> Serving:
    """Return what is left to serve if a version does not load.

    If it was the default in the previous server, it stays the default as a placeholder without workers.
    """
    name, number = version
    archives = tuple(archive for archive in serving.archives if archive.version != version)
    workers = {each: counts for each, counts in serving.workers.items() if each != version}
    left = replace(serving, archives=archives, workers=workers)
    if version in serving.kept_defaults:
        return replace(left, placeholders=(*serving.placeholders, version), workers={**workers, version: (0, 0)})
    if serving.defaults.get(name) != number:
        return left
    others = [other for model, other in (archive.version for archive in archives) if model == name]
    defaults = {model: default for model, default in serving.defaults.items() if model != name}
    return replace(left, defaults=defaults | ({name: max(others, key=version_order)} if others else {}))


def refused_default(version: Version) -> str:
    """Describe the effect of a default version that is left out."""
    return f"{':'.join(version)} is the default and left out: requests without a version get 503"


def next_state(
    before: ServerState | None,
    seen: Iterable[VersionStatus],
    configured: Mapping[Version, Parameters],
    in_store: Callable[[str], bool],
    contents: Mapping[Version, ArchiveBytes] | None = None,
    left_out: Collection[str] = (),
) -> ServerState:
    """Return the new state after a look at a running server.

    A version that never had a ready worker is not saved, because it must not prevent the next start. A version that was
    left out stays saved, for the start at which its archive is valid again.

    Args:
        before: the previous state.
        seen: registered versions.
        configured: values that the files alone give to a version, if they are new.
        in_store: whether an archive is in the store.
        contents: digests of the archives of registered versions, if they are new.
        left_out: names of files in the store that the running server leaves out.
    """
    before, contents = before or ServerState(), contents or {}
    listed = list(seen)
    registered = [status for status in listed if not stands_in(status, left_out)]
    kept = [status for status in registered if _has_worked(status) or before.version(_version(status))]
    waiting = {version for version in before.served() if before.file(version) in left_out}
    waiting -= {_version(status) for status in registered}
    standing = {status.model_name for status in listed if status.default and stands_in(status, left_out)}
    models = {}
    for name in sorted({status.model_name for status in kept} | {name for name, _ in waiting}):
        own = [status for status in kept if status.model_name == name]
        versions = {status.model_version: _served(status, before, configured, contents) for status in own}
        versions |= {number: before.models[name].versions[number] for model, number in waiting if model == name}
        models[name] = ServedModel(_next_default(name, standing, own, before, versions), versions)
    gone = {**before.unregistered, **{version: _left(before, version) for version in before.served()}}
    for version in (*map(_version, registered), *waiting):
        gone.pop(version, None)
    return ServerState(models, {version: left for version, left in gone.items() if in_store(left.archive)})


def without(state: ServerState, version: Version) -> ServerState:
    """Return the state without a version of a server that does not run.

    If the version was the default, the newest other version becomes the default.
    """
    name, number = version
    model = state.models[name]
    left = {each: served for each, served in model.versions.items() if each != number}
    models = {each: other for each, other in state.models.items() if each != name}
    if left:
        default = model.default if model.default in left else max(left, key=version_order)
        models[name] = ServedModel(default, left)
    return ServerState(models, {**state.unregistered, version: _left(state, version)})


def parameters_of(status: VersionStatus) -> Parameters:
    """Return the parameters of a registered version."""
    return Parameters(
        status.min_workers,
        status.max_workers,
        status.batch_size,
        status.max_batch_delay_ms,
        status.response_timeout_s,
        status.startup_timeout_s,
    )


def _left_out_defaults(
    wanted: Collection[Version], state: ServerState, left_out: Iterable[LeftOut]
) -> tuple[Version, ...]:
    files = {each.file for each in left_out}
    defaults = [(name, model.default) for name, model in sorted(state.models.items())]
    return tuple(version for version in defaults if version not in wanted and state.file(version) in files)


def _defaults(
    wanted: Collection[Version], state: ServerState, placeholders: Iterable[Version]
) -> tuple[dict[str, str], list[str]]:
    defaults = dict(placeholders)
    notes = [refused_default(version) for version in defaults.items()]
    for name in sorted({name for name, _ in wanted} - defaults.keys()):
        versions = [version for model, version in wanted if model == name]
        known = [version for version in versions if state.version((name, version))]
        newest = max(known or versions, key=version_order)
        remembered = state.models[name].default if name in state.models else None
        defaults[name] = remembered if remembered in versions and remembered else newest
        if remembered and remembered not in versions:
            notes.append(f"{name}:{remembered} was the default and cannot be served: {newest} is the default now")
        notes += [
            f"{name}:{version} is new in the store; the default stays {defaults[name]}"
            for version in sorted(set(versions) - set(known))
            if known
        ]
    return defaults, notes


def _workers(
    wanted: Iterable[Version], state: ServerState, configured: Mapping[Version, Parameters]
) -> tuple[dict[Version, tuple[int, int]], list[str]]:
    """Return the counts that were set at run time, unless the files have changed since."""
    workers, notes = {}, []
    for version in sorted(wanted):
        served = state.version(version)
        if served is None:
            continue
        ran, asked = _counts(served.running), _counts(served.configured)
        now = _counts(configured.get(version)) or asked
        if ran in {asked, now}:
            continue
        if now == asked:
            workers[version] = (served.running.min_workers, served.running.max_workers)
        else:
            notes.append(f"{':'.join(version)} has a new configuration: {now} workers instead of {ran}")
    return workers, notes


def _counts(parameters: Parameters | None) -> str | None:
    if parameters is None:
        return None
    least, most = parameters.min_workers, parameters.max_workers
    return str(least) if least == most else f"{least} to {most}"


def _absent(
    stored: Mapping[Version, StoredArchive],
    state: ServerState,
    left_out: Iterable[LeftOut],
    unregistered: Collection[Version],
) -> list[str]:
    """Describe versions that are not served although a user may expect it; left-out versions have their own lines."""
    files = {each.file for each in left_out}
    notes = [
        f"{':'.join(version)} is not served: its archive {state.archive(version)} has left the store"
        for version in state.served()
        if version not in stored and state.file(version) not in files
    ]
    return notes + [
        f"{':'.join(version)} was unregistered before the restart: marsmith register {stored[version].path.name}"
        for version in sorted(set(unregistered) & stored.keys())
    ]


def _served(
    status: VersionStatus,
    before: ServerState,
    configured: Mapping[Version, Parameters],
    contents: Mapping[Version, ArchiveBytes],
) -> ServedVersion:
    version = _version(status)
    known = before.version(version)
    by_files = configured.get(version) or (known.configured if known else None)
    same_file = known is not None and known.archive == status.archive_url
    content = contents.get(version) or (known.bytes if known and same_file else None)
    return ServedVersion(status.archive_url, parameters_of(status), by_files, content)


def _left(state: ServerState, version: Version) -> Unregistered:
    served = state.models[version[0]].versions[version[1]]
    return Unregistered(served.archive, served.bytes)


def _next_default(
    name: str,
    standing: Collection[str],
    kept: Sequence[VersionStatus],
    before: ServerState,
    versions: Mapping[str, ServedVersion],
) -> str:
    """Return the default version to save; for a placeholder, the version that it stands for."""
    remembered = before.models.get(name)
    default = remembered.default if remembered and (name in standing or not kept) else _default(kept)
    return default if default in versions else max(versions, key=version_order)


def _default(versions: Sequence[VersionStatus]) -> str:
    chosen = next((status for status in versions if status.default), None)
    chosen = chosen or max(versions, key=lambda status: version_order(status.model_version))
    return chosen.model_version


def _has_worked(status: VersionStatus) -> bool:
    return status.ready_workers > 0 or status.min_workers == 0


def _version(status: VersionStatus) -> Version:
    return status.model_name, status.model_version
