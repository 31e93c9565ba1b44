"""What is known about the server that runs for a project: ``.marsmith/run/server.json``.

The file is written when a server has been started and removed when it has been stopped. A pid alone may have been given
to another process since; with the time at which the process was created it cannot.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.errors import NotRunningError, ServerError
from marsmith.json_reader import read_json
from marsmith.project import Project

FILE_NAME = "server.json"


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
        ServerError: the file is damaged.
    """
    path = project.run / FILE_NAME
    try:
        data = read_json(path.read_text(encoding="utf-8"))
        known = {each.name: data[each.name] for each in fields(RunState) if each.name in data}
        check_process(data["pid"], data["created"])
        trusted = Path(data["ca_file"]) if data.get("ca_file") else None
        left_out = tuple(LeftOut(**item) for item in data.get("left_out", ()))
        return RunState(**{**known, "folder": Path(data["folder"]), "ca_file": trusted, "left_out": left_out})
    except FileNotFoundError:
        raise NotRunningError(f"no server runs for the project {project.root}", tip="marsmith serve") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ServerError(f"{path} is damaged: {error}", tip="marsmith stop ends the server, and removes it") from None


def check_process(pid: Any, created: Any) -> None:
    """Raise ValueError unless these can be the id of a process and the time at which it was created."""
    if type(pid) is not int or not 0 < pid < 1 << 31:
        raise ValueError(f"pid is {pid!r:.40}")
    if not isinstance(created, int | float) or not abs(created) < 1 << 62:
        raise ValueError(f"created is {created!r:.40}")


def write(project: Project, state: RunState) -> None:
    """Write the state whole or not at all, readable by the owner only."""
    text = json.dumps(asdict(state), indent=2, default=str) + "\n"
    files.write_atomically(project.run / FILE_NAME, text, mode=0o600)


def remove(project: Project) -> None:
    """Forget the server."""
    path = project.run / FILE_NAME
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
