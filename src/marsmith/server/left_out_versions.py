"""A version that a running server leaves out: it is taken off, no other takes its place, and fixed it comes back."""

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


def take_off(
    client: Client,
    described: Mapping[Version, VersionStatus],
    failed: Collection[Version],
    standing_in: Collection[Version],
) -> dict[Version, str]:
    """Take versions that do not load off the server; return those that are not off yet, in words.

    TorchServe starts their workers again and again while they are there. A default version whose place no other takes
    keeps it, without workers: then TorchServe answers 503. So does one that TorchServe does not unregister.
    """
    waiting = {}
    for version in sorted(failed & described.keys()):
        status = described[version]
        has_workers = bool(status.workers or status.min_workers)
        if (version not in standing_in and _unregistered(client, version)) or has_workers:
            waiting[version] = "does not load, and is taken off"
        if has_workers:
            # An unregistered one is not found.
            with suppress(ClientError):
                client.scale(version[0], version=version[1], min_workers=0, synchronous=False)
    return waiting


def refuse_left_out(project: Project, status: VersionStatus) -> None:
    """Raise UsageError for a version that only stands in for one that is left out."""
    if holds_place(project, status):
        raise UsageError(
            f"{status.model_name}:{status.model_version} is left out of the running server",
            tip="marsmith status says why; when that is fixed: marsmith register ARCHIVE",
        )


def holds_place(project: Project, status: VersionStatus) -> bool:
    """Whether a registered version only stands in for one that is left out of the running server."""
    return stands_in(status, left_out_files(project))


def left_out_files(project: Project) -> frozenset[str]:
    """Return the names of what lies in the store and is left out of the running server."""
    try:
        return frozenset(each.file for each in run_state.read(project).left_out)
    except MarsmithError:
        return frozenset()


def is_left_out(project: Project, version: Version) -> bool:
    """Whether the server before served a version and the running one leaves it out."""
    state = served_file.read(project)
    return state.version(version) is not None and state.file(version) in left_out_files(project)


@contextmanager
def in_its_place(project: Project, client: Client, version: Version) -> Iterator[None]:
    """Let a version be registered whose place something holds because it was left out; it becomes the default again.

    TorchServe has a version once, and gives the default to another one when it goes: so a placeholder with a number
    of its own is the default meanwhile. When the registration fails everything is as before.
    """
    name, number = version
    holder = _holder(project, client, version)
    if holder is None:
        yield
        return
    if holder.default:
        _hold(project, client, (name, VERSION))
    client.unregister(name, number)
    try:
        yield
    except BaseException:
        with suppress(ClientError):
            client.unregister(name, number)
        with suppress(ClientError):
            _hold(project, client, version, default=holder.default)
            _let_go(client, name)
        raise
    if holder.default:
        client.set_default(name, number)
        _let_go(client, name)


def _holder(project: Project, client: Client, version: Version) -> VersionStatus | None:
    """Return what is registered in the place of a version that is left out."""
    with suppress(NotFoundError):
        status = client.describe(*version)[0]
        return status if holds_place(project, status) else None
    return None


def _hold(project: Project, client: Client, version: Version, *, default: bool = True) -> None:
    """Register a placeholder, without workers, and let it be the default version."""
    folder = write_placeholder(_folder(project, version), version)
    client.register(str(folder), synchronous=False)
    client.scale(version[0], version=version[1], min_workers=0, synchronous=False)
    if default:
        client.set_default(*version)


def _let_go(client: Client, name: str) -> None:
    """Unregister the placeholder that has a number of its own, if it is there."""
    with suppress(NotFoundError):
        client.unregister(name, VERSION)


def _folder(project: Project, version: Version) -> Path:
    """Return a folder for one placeholder: TorchServe names what it makes of it by the time, and wants it to stay."""
    return launch.temporary_folder(project) / f"left-out-{version[1]}"


def _unregistered(client: Client, version: Version) -> bool:
    """Unregister a version; return whether it is gone, or may be at the next look."""
    try:
        client.unregister(*version)
    except RequestRejectedError:
        return False
    except ClientError:
        return True
    return True
