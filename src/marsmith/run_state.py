"""State of the running server of a project: ``.marsmith/run/server.json``.

The file is written when a server has been started and removed when it has been stopped. A pid may be reused by another
process, but not together with the creation time of the process.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from marsmith import files, state_files
from marsmith.errors import FormatError, NotRunningError, ServerError
from marsmith.file_errors import state_error
from marsmith.project import Project
from marsmith.state_files import NewerFormatError

FILE_NAME = "server.json"
FORMAT = 1
_STOP = "marsmith stop ends the server, and removes it"


class NewerStateError(ServerError):
    """A later release of marsmith runs the server, or did."""

    @classmethod
    def of(cls, error: NewerFormatError) -> NewerStateError:
        """Return the error for a file of the server, with the way out."""
        return cls(error.message, tip=f"{error.tip}; or end the server: marsmith stop")


@dataclass(frozen=True)
class LeftOut:
    """A file in a model store that is not served.

    Attributes:
        file: name in the store.
        reason: reason in one line.
        tip: what to do about it.
        is_archive: whether it claims to be an archive; other files in a store are only mentioned.
    """

    file: str
    reason: str
    tip: str = ""
    is_archive: bool = True

    def __str__(self) -> str:
        return f"left out: {self.file}: {self.reason}"


@dataclass(frozen=True)
class Backend:
    """Private addresses of TorchServe's inference API behind the front.

    Attributes:
        inference: base URL.
        grpc_inference: ``host:port``.
    """

    inference: str
    grpc_inference: str


@dataclass(frozen=True)
class RunState:
    """One running TorchServe.

    Attributes:
        pid: process id of the Java frontend.
        created: creation time of the process from psutil, in seconds since the epoch.
        inference, management, metrics: base URLs, such as ``http://127.0.0.1:8080``. With a front, the inference API is
            that of the front.
        grpc_inference, grpc_management: ``host:port``.
        folder: working folder of the server, with its key file, logs and temporary files.
        tokens: whether the server requires tokens.
        ca_file: trusted certificates for a client in PEM; None if no API uses TLS.
        ready: whether every version has answered during the start; it may have failed since.
        left_out: files in the model store that are left out.
        backend: private addresses of TorchServe behind the front; None if there is no front.
    """

    pid: int
    created: float
    inference: str
    management: str
    metrics: str
    grpc_inference: str
    grpc_management: str
    folder: Path
    tokens: bool
    ca_file: Path | None = None
    ready: bool = False
    left_out: tuple[LeftOut, ...] = ()
    backend: Backend | None = None

    @property
    def key_file(self) -> Path:
        """TorchServe's ``key_file.json``, with its three tokens."""
        return self.folder / "key_file.json"

    def without_front(self) -> RunState:
        """Return the state with the addresses of TorchServe itself, to call it past the front."""
        if self.backend is None:
            return self
        return replace(self, inference=self.backend.inference, grpc_inference=self.backend.grpc_inference)


def read(project: Project) -> RunState:
    """Read the state of the project's server, without a check whether it still runs.

    Raises:
        NotRunningError: no server was started, or it was stopped.
        NewerStateError: a later marsmith wrote the file.
        ServerError: the file is damaged.
    """
    path = project.run / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
        state = state_files.parse(RunState, text, str(path), version=FORMAT, unversioned=1)
        check_process(state.pid, state.created)
    except FileNotFoundError:
        raise NotRunningError(f"no server runs for the project {project.root}", tip="marsmith serve") from None
    except NewerFormatError as error:
        raise NewerStateError.of(error) from None
    except FormatError as error:
        found = "; ".join(error.problems)
        raise ServerError(f"{path} is damaged: {found}", tip=_STOP) from None
    except NotADirectoryError as error:
        # A file in the place of a folder is not damage of this one, and marsmith stop does not remove it.
        raise state_error(error) from None
    except (OSError, ValueError) as error:
        raise ServerError(f"{path} is damaged: {error}", tip=_STOP) from None
    return state


def check_process(pid: int, created: float) -> None:
    """Raise ValueError unless these can be the id and the creation time of a process."""
    if not 0 < pid < 1 << 31:
        raise ValueError(f"pid is {pid!r:.40}")
    if not abs(created) < 1 << 62:
        raise ValueError(f"created is {created!r:.40}")


def write(project: Project, state: RunState) -> None:
    """Write the state atomically, readable only by the owner."""
    files.write_atomically(project.run / FILE_NAME, state_files.render(state, FORMAT), mode=0o600)


def remove(project: Project) -> None:
    """Remove the state."""
    path = project.run / FILE_NAME
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
