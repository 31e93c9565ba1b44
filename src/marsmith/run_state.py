"""What is known about the server that runs for a project: ``.marsmith/run/server.json``.

The file is written when a server has been started and removed when it has been stopped. A pid alone may have been given
to another process since; with the time at which the process was created it cannot.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from marsmith import files, state_files
from marsmith.errors import FormatError, NotRunningError, ServerError
from marsmith.project import Project
from marsmith.state_files import NewerFormatError

FILE_NAME = "server.json"
FORMAT = 1
_STOP = "marsmith stop ends the server, and removes it"


@dataclass(frozen=True)
class LeftOut:
    """Something in a model store that is not served.

    Attributes:
        file: its name in the store.
        reason: why, in one line.
        tip: what to do about it.
        is_archive: whether it claims to be an archive; other things in a store are only mentioned.
    """

    file: str
    reason: str
    tip: str = ""
    is_archive: bool = True

    def __str__(self) -> str:
        return f"left out: {self.file}: {self.reason}"


@dataclass(frozen=True)
class RunState:
    """One running TorchServe.

    Attributes:
        pid: process id of the Java frontend.
        created: when that process was created, in seconds since the epoch, as psutil gives it.
        inference, management, metrics: base URLs, as ``http://127.0.0.1:8080``.
        grpc_inference, grpc_management: ``host:port``.
        folder: the server's working folder; its key file, logs and temporary files lie there.
        tokens: whether the server asks for tokens.
        ca_file: certificates that a client is to trust, in PEM; None where no API speaks TLS.
        ready: whether it has come so far that every version has answered; it may have been lost again since.
        left_out: what lies in the model store and was not given to it.
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

    @property
    def key_file(self) -> Path:
        """TorchServe's ``key_file.json``, with its three tokens."""
        return self.folder / "key_file.json"


def read(project: Project) -> RunState:
    """Read the state of the project's server, without looking whether it still lives.

    Raises:
        NotRunningError: no server was started, or it was stopped.
        ServerError: the file is damaged, or a newer marsmith wrote it.
    """
    path = project.run / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
        state = state_files.parse(RunState, text, str(path), version=FORMAT, unversioned=1)
        check_process(state.pid, state.created)
    except FileNotFoundError:
        raise NotRunningError(f"no server runs for the project {project.root}", tip="marsmith serve") from None
    except NewerFormatError as error:
        raise ServerError(error.message, tip=f"{error.tip}; or end the server: marsmith stop") from None
    except FormatError as error:
        found = "; ".join(error.problems)
        raise ServerError(f"{path} is damaged: {found}", tip=_STOP) from None
    except (OSError, ValueError) as error:
        raise ServerError(f"{path} is damaged: {error}", tip=_STOP) from None
    return state


def check_process(pid: int, created: float) -> None:
    """Raise ValueError unless these can be the id of a process and the time at which it was created."""
    if not 0 < pid < 1 << 31:
        raise ValueError(f"pid is {pid!r:.40}")
    if not abs(created) < 1 << 62:
        raise ValueError(f"created is {created!r:.40}")


def write(project: Project, state: RunState) -> None:
    """Write the state whole or not at all, readable by the owner only."""
    files.write_atomically(project.run / FILE_NAME, state_files.render(state, FORMAT), mode=0o600)


def remove(project: Project) -> None:
    """Forget the server."""
    path = project.run / FILE_NAME
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
