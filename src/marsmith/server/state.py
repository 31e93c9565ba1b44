"""State of the running server for the next start: ``.marsmith/state/served.json``.

The supervisor updates it every few seconds. A command that changes what is registered calls ``record`` at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith import run_state
from marsmith.archive import Archive
from marsmith.archive.admit import digest_of
from marsmith.config.server_config import started_with
from marsmith.errors import MarsmithError, ServerError
from marsmith.project import Project
from marsmith.server.configured import configured_parameters, openable
from marsmith.server.placeholder import still_left_out
from marsmith.server.processes import frontend
from marsmith.server.served import next_state, without
from marsmith.state.served import ArchiveBytes, Parameters, ServerState, Version
from marsmith.state.served_file import load, locked, read, save, state_file

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client
    from marsmith.client.management import VersionStatus

# While this file exists the server is being stopped, and versions that it unregisters itself stay saved.
STOPPING = "stopping"

_DEADLINE_S = 5.0


def record(
    project: Project,
    contents: Mapping[Version, ArchiveBytes] | None = None,
    *,
    refused: Callable[[OSError], None] | None = None,
) -> bool:
    """Read what the project's server serves and save it; False if the server could not be asked.

    To be called after every change that must survive a restart. If it fails, the supervisor saves the change later.

    Args:
        project: project of the server.
        contents: digests of the archives of versions that were just registered.
        refused: called with the system's message if the file cannot be written.
    """
    from marsmith.client.blocking_client import Client

    try:
        state = run_state.read(project)
        # During a start, versions that are not loaded yet look unregistered.
        if not state.ready or frontend(state.pid, state.created) is None:
            return False
        with Client.of(state, deadline_s=_DEADLINE_S) as client, locked(project):
            return _keep(project, registered_versions(client), contents=contents)
    except MarsmithError:
        return False
    except OSError as error:
        if refused:
            refused(error)
        return False


def look(project: Project, client: Client) -> tuple[VersionStatus, ...]:
    """Return every registered version, and save them if possible.

    The lock excludes other writers, so an older look never overwrites a newer one.

    Raises:
        ClientError: the server does not answer.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(locked(project))
        versions = registered_versions(client)
        with suppress(OSError):
            _keep(project, versions)
    return versions


def registered_versions(client: Client) -> tuple[VersionStatus, ...]:
    """Return every version that is registered, sorted by model and version.

    Raises:
        ClientError: the server does not answer.
    """
    found = [status for model in client.models() for status in client.describe(model.name)]
    return tuple(sorted(found, key=lambda status: (status.model_name, status.model_version)))


def remember(
    project: Project,
    versions: Sequence[VersionStatus],
    configured: Mapping[Version, Parameters] | None = None,
    contents: Mapping[Version, ArchiveBytes] | None = None,
) -> bool:
    """Save that these versions are registered; False if the server is being stopped, or if the disk refuses.

    Args:
        project: project of the server.
        versions: all registered versions.
        configured: values that the files alone give to the versions, if they are new: after a start.
        contents: digests of the archives of the versions, if known.
    """
    with suppress(OSError), locked(project):
        return _keep(project, versions, configured, contents)
    return False


def leave_out(project: Project, version: Version) -> ServerState:
    """Save that the next start leaves out a version; return the new state.

    Raises:
        ServerError: the file cannot be written.
    """
    try:
        with locked(project):
            after = without(read(project), version)
            save(project, after)
    except OSError as error:
        raise ServerError(f"cannot write {state_file(project)}: {error.strerror}") from None
    return after


def content_of(archive: Archive) -> ArchiveBytes:
    """Return the digest by which an archive is identified.

    Raises:
        ArchiveError: a folder's member is damaged.
        OSError: the archive cannot be read.
    """
    return ArchiveBytes(digest_of(archive), archive.is_ours)


def _keep(
    project: Project,
    versions: Sequence[VersionStatus],
    configured: Mapping[Version, Parameters] | None = None,
    contents: Mapping[Version, ArchiveBytes] | None = None,
) -> bool:
    if (project.run / STOPPING).exists():
        return False
    before = load(project).state
    config = started_with(project)
    new = _configured_of_new(config, before, versions) if configured is None else configured
    store = Path(config["model_store"])
    known = {**_contents_of_new(store, before, versions, contents or {}), **(contents or {})}
    after = next_state(
        before,
        versions,
        new,
        lambda archive: (store / archive.rpartition("/")[2]).exists(),
        known,
        _left_out(project, versions),
    )
    if after != before:
        save(project, after)
    return True


def _left_out(project: Project, versions: Iterable[VersionStatus] = ()) -> frozenset[str]:
    """Return the names of the files in the store that the running server does not serve.

    Forget those that it serves now.
    """
    try:
        state = run_state.read(project)
        still = still_left_out(state.left_out, versions)
        if still != state.left_out:
            run_state.write(project, replace(state, left_out=still))
    except MarsmithError:
        return frozenset()
    return frozenset(each.file for each in still)


def _configured_of_new(
    config: Mapping[str, str], before: ServerState | None, versions: Iterable[VersionStatus]
) -> dict[Version, Parameters]:
    """Return the values that the files alone give to versions that are new."""
    before = before or ServerState()
    keys = {(status.model_name, status.model_version): status.archive_url.rpartition("/")[2] for status in versions}
    paths = [Path(config["model_store"]) / name for key, name in keys.items() if before.version(key) is None]
    return configured_parameters(config, openable(paths)) if paths else {}


def _contents_of_new(
    store: Path,
    before: ServerState | None,
    versions: Iterable[VersionStatus],
    known: Mapping[Version, ArchiveBytes],
) -> dict[Version, ArchiveBytes]:
    """Read the archives of versions that were registered by others, to get their digests."""
    found: dict[Version, ArchiveBytes] = {}
    for status in versions:
        version = (status.model_name, status.model_version)
        served = before.version(version) if before else None
        if version in known or (served and served.archive == status.archive_url):
            continue
        with suppress(MarsmithError, OSError):
            found[version] = content_of(Archive.open(store / status.archive_url.rpartition("/")[2]))
    return found
