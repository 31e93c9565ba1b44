"""State of the supervisor: ``.marsmith/run/supervisor.json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from marsmith import files, state_files
from marsmith.errors import FormatError
from marsmith.project import Project
from marsmith.run_state import NewerStateError, check_process
from marsmith.server.processes import frontend
from marsmith.state_files import NewerFormatError

FILE_NAME = "supervisor.json"
FORMAT = 1


@dataclass(frozen=True)
class SupervisorState:
    """State of one supervisor.

    Attributes:
        pid: process id.
        created: creation time of the process from psutil, in seconds since the epoch.
        doing: description of its current activity.
        restarts: number of restarts of TorchServe.
        last_end: how TorchServe ended the last time; empty if it never did.
        worker_restarts: number of restarts of workers by TorchServe, by version (``name:version``).
        listener: base URL of its own listener; empty if it has none.
    """

    pid: int
    created: float
    doing: str = "starting"
    restarts: int = 0
    last_end: str = ""
    worker_restarts: Mapping[str, int] = field(default_factory=dict)
    listener: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return frontend(self.pid, self.created) is not None


def of_this_process() -> SupervisorState:
    """Return the state of this process as a supervisor."""
    import psutil

    return SupervisorState(os.getpid(), psutil.Process().create_time())


def read(project: Project) -> SupervisorState | None:
    """Return the project's living supervisor; None if there is none.

    Raises:
        NewerStateError: a later marsmith wrote the file.
    """
    path = _path(project)
    try:
        text = path.read_text(encoding="utf-8")
        state = state_files.parse(SupervisorState, text, str(path), version=FORMAT, unversioned=1)
        check_process(state.pid, state.created)
    except NewerFormatError as error:
        raise NewerStateError.of(error) from None
    except (OSError, ValueError, FormatError):
        return None
    return state if state.is_alive else None


def read_own_format(project: Project) -> SupervisorState | None:
    """Return the project's living supervisor; None if there is none that this release of marsmith knows."""
    try:
        return read(project)
    except NewerStateError:
        return None


def write(project: Project, state: SupervisorState) -> None:
    """Write the state atomically."""
    files.write_atomically(_path(project), state_files.render(state, FORMAT), mode=0o600)


def remove(project: Project) -> None:
    """Remove the state."""
    _path(project).unlink(missing_ok=True)


def _path(project: Project) -> Path:
    return project.run / FILE_NAME
