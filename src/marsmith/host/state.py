"""The state of a running host: one file in its folder, so that ``marsmith stop --state`` finds it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from marsmith import files, state_files
from marsmith.errors import FormatError, NotRunningError, ServerError

FILE_NAME = "host.json"
LOGS = "logs"
_LOCK = "lock"
FORMAT = 1
_LOOK_S = 0.05


@dataclass(frozen=True)
class HostState:
    """One running host.

    Attributes:
        pid: its process id.
        created: creation time of the process from psutil, in seconds since the epoch.
        url: base URL.
        grpc: ``host:port`` of its gRPC API; None: it has none.
        key_file: its tokens; None: it requires none.
    """

    pid: int
    created: float
    url: str
    grpc: str | None = None
    key_file: Path | None = None

    @property
    def is_running(self) -> bool:
        """Whether that process still runs; a pid may have been reused by another."""
        try:
            return abs(psutil.Process(self.pid).create_time() - self.created) < 1
        except psutil.Error:
            return False


def default_folder(port: int) -> Path:
    """Return the folder of the state of a host on this port: in the user's runtime folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime else Path(tempfile.gettempdir()) / _shared_name()
    return base / "marsmith" / f"host-{port}"


def _shared_name() -> str:
    """Return the name of our folder among those of all users."""
    return f"marsmith-{os.getuid()}"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make the folder, for its owner only, and hold it for one host; remove at the end what it leaves there, but logs.

    A lock keeps others away, because a host writes its state only once it serves.

    Raises:
        ServerError: a host runs with it, or it belongs to somebody else.
    """
    is_new = not folder.exists()
    _make(folder)
    with ExitStack() as stack:
        if is_new:
            stack.callback(_remove_empty, folder)
        try:
            stack.enter_context(files.lock(folder / _LOCK, wait_s=0.0, remove=True))
        except files.LockedError as error:
            raise ServerError(
                f"a host with the state in {folder} runs already (pid {error.holder})",
                tip=f"marsmith stop --state {folder}, or another --state",
            ) from None
        stack.callback(remove, folder)
        yield


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ServerError(f"--state: {folder}: {error.strerror}", tip="--state with a folder of your own") from None
    # Who owns the folder above can put another one in its place.
    shared = [each.lstat() for each in folder.parents if each.name == _shared_name()]
    if any(each.st_uid != os.getuid() for each in (folder.stat(), *shared)):
        raise ServerError(f"{folder} belongs to another user", tip="--state with a folder of your own")
    folder.chmod(0o700)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def write(folder: Path, state: HostState) -> None:
    """Write the state atomically."""
    files.write_atomically(folder / FILE_NAME, state_files.render(state, FORMAT), mode=0o600)


def read(folder: Path) -> HostState:
    """Read the state, without a check whether the host still runs.

    Raises:
        NotRunningError: there is none.
        ServerError: it is damaged.
    """
    path = folder / FILE_NAME
    try:
        return state_files.parse(HostState, path.read_text(encoding="utf-8"), str(path), version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        raise NotRunningError(
            f"no host runs with the state in {folder}", tip="marsmith host prints its folder"
        ) from None
    except FormatError as error:
        raise ServerError(error.message, tip=f"end it with kill, then remove {path}") from None


def remove(folder: Path) -> None:
    """Remove what a host leaves in its folder, except for logs."""
    for path in (folder / FILE_NAME, folder / "key_file.json"):
        path.unlink(missing_ok=True)
    _remove_empty(folder / LOGS)


def stop(folder: Path, timeout_s: float) -> bool:
    """End the host, in order within the time, by force after it; return whether one ran.

    Raises:
        NotRunningError: there is no state.
    """
    state = read(folder)
    if not state.is_running:
        remove(folder)
        return False
    late = time.monotonic() + timeout_s
    # It may end by itself at any moment.
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        os.kill(state.pid, signal.SIGTERM)
        while state.is_running and psutil.Process(state.pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() >= late:
                os.kill(state.pid, signal.SIGKILL)
            time.sleep(_LOOK_S)
    remove(folder)
    return True
