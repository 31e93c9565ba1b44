"""Versions that a running server leaves out: unregister them, keep their place, and register them again when fixed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith import run_state
from marsmith.errors import ClientError, MarsmithError, NotFoundError, RequestRejectedError, UsageError
from marsmith.server import launch
from marsmith.server.placeholder import VERSION, stands_in, write_placeholder
from marsmith.state import served_file
from marsmith.state.served import Version

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client, VersionStatus
    from marsmith.project import Project
    from marsmith.server.opened import OpenedServer


def take_off(
    client: Client,
    described: Mapping[Version, VersionStatus],
    failed: Collection[Version],
    standing_in: Collection[Version],
) -> dict[Version, str]:
    """Unregister versions that do not load; return descriptions of those that are still registered.

    TorchServe restarts their workers again and again. A left-out default version keeps its place, without workers:
    TorchServe then answers 503. So does a version that TorchServe does not unregister.
    """
    waiting = {}
    for version in sorted(failed & described.keys()):
        status = described[version]
        has_workers = bool(status.workers or status.min_workers)
        if (version not in standing_in and _unregistered(client, version)) or has_workers:
            waiting[version] = "does not load, and is being unregistered"
        if has_workers:
            # A version that is already unregistered is not found.
            with suppress(ClientError):
                client.scale(version[0], version=version[1], min_workers=0, synchronous=False)
    return waiting


def refuse_left_out(project: Project, status: VersionStatus) -> None:
    """Raise UsageError for a placeholder of a version that is left out."""
    if holds_place(project, status):
        raise UsageError(
            f"{status.model_name}:{status.model_version} is left out of the running server",
            tip="marsmith status shows the reason; when it is fixed: marsmith register ARCHIVE",
        )


def holds_place(project: Project, status: VersionStatus) -> bool:
    """Return whether a registered version is a placeholder of a version that is left out of the running server."""
    return stands_in(status, left_out_files(project))


def left_out_files(project: Project) -> frozenset[str]:
    """Return the names of the files in the store that are left out of the running server."""
    try:
        return frozenset(each.file for each in run_state.read(project).left_out)
    except MarsmithError:
        return frozenset()


def is_left_out(project: Project, version: Version) -> bool:
    """Return whether the previous server served a version and the running one leaves it out."""
    state = served_file.read(project)
    return state.version(version) is not None and state.file(version) in left_out_files(project)


@contextmanager
def in_its_place(server: OpenedServer, version: Version) -> Iterator[None]:
    """Yield while a left-out version can be registered in its reserved place.

    A default version becomes the default again.

    TorchServe has each version only once, and makes another one the default when the default is unregistered. A
    placeholder with a separate number is therefore the default meanwhile. If the registration fails, the previous state
    is restored.
    """
    (name, number), client = version, server.client
    holder = _holder(server, version)
    if holder is None:
        yield
        return
    if holder.default:
        _hold(server, (name, VERSION))
    client.unregister(name, number)
    try:
        yield
    except BaseException:
        with suppress(ClientError):
            client.unregister(name, number)
        with suppress(ClientError):
            _hold(server, version, default=holder.default)
            _let_go(client, name)
        raise
    if holder.default:
        client.set_default(name, number)
        _let_go(client, name)


def _holder(server: OpenedServer, version: Version) -> VersionStatus | None:
    """Return the version that is registered in the place of a left-out version."""
    with suppress(NotFoundError):
        status = server.client.describe(*version)[0]
        return status if holds_place(server.project, status) else None
    return None


def _hold(server: OpenedServer, version: Version, *, default: bool = True) -> None:
    """Register a placeholder without workers, and make it the default version."""
    client, folder = server.client, write_placeholder(_folder(server.project, version), version)
    client.register(str(folder), synchronous=False)
    client.scale(version[0], version=version[1], min_workers=0, synchronous=False)
    if default:
        client.set_default(*version)


def _let_go(client: Client, name: str) -> None:
    """Unregister the placeholder with the separate number, if it is registered."""
    with suppress(NotFoundError):
        client.unregister(name, VERSION)


def _folder(project: Project, version: Version) -> Path:
    """Return a folder for one placeholder. TorchServe names its copy by the time, and the folder must stay."""
    return launch.temporary_folder(project) / f"left-out-{version[1]}"


def _unregistered(client: Client, version: Version) -> bool:
    """Unregister a version; return whether it is gone, or may be at the next check."""
    try:
        client.unregister(*version)
    except RequestRejectedError:
        return False
    except ClientError:
        return True
    return True
