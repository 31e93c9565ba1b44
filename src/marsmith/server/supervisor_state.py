"""State of the supervisor: ``.marsmith/run/supervisor.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from marsmith import files
from marsmith.json_reader import read_json
from marsmith.project import Project
from marsmith.run_state import check_process
from marsmith.server.processes import frontend

FILE_NAME = "supervisor.json"


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
    """

    pid: int
    created: float
    doing: str = "starting"
    restarts: int = 0
    last_end: str = ""
    worker_restarts: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return frontend(self.pid, self.created) is not None


def of_this_process() -> SupervisorState:
    """Return the state of this process as a supervisor."""
    import psutil

    return SupervisorState(os.getpid(), psutil.Process().create_time())


def read(project: Project) -> SupervisorState | None:
    """Return the project's living supervisor; None if there is none."""
    try:
        data = read_json(_path(project).read_text(encoding="utf-8"))
        check_process(data["pid"], data["created"])
        state = SupervisorState(**{each.name: data[each.name] for each in fields(SupervisorState) if each.name in data})
        restarts = state.worker_restarts
        if not isinstance(restarts, dict) or not all(type(count) is int for count in restarts.values()):
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return state if state.is_alive else None


def write(project: Project, state: SupervisorState) -> None:
    """Write the state atomically."""
    files.write_atomically(_path(project), json.dumps(asdict(state), indent=2) + "\n", mode=0o600)


def remove(project: Project) -> None:
    """Remove the state."""
    _path(project).unlink(missing_ok=True)


def _path(project: Project) -> Path:
    return project.run / FILE_NAME
