"""End the processes of a project's server, and remove the files of a running one."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from marsmith import run_state
from marsmith.project import Project
from marsmith.server import launch, supervisor_state
from marsmith.server import processes as server_process
from marsmith.server.front.door import Front
from marsmith.server.state import STOPPING

# Time of Envoy to end by itself.
_FRONT_ENDS_S = 5.0
# Time of a supervisor, beyond that of the server, to notice the end and to clean up.
_SUPERVISOR_GRACE_S = 10.0


def end_supervisors(project: Project, timeout_s: float) -> bool:
    """End the supervisor, which ends the server first. Return whether there was one.

    A supervisor in the background is also identified by its environment, in case its state file is damaged.
    """
    known = supervisor_state.read_own_format(project)
    found = {(known.pid, known.created)} if known else set()
    found |= {(each.pid, each.create_time()) for each in server_process.supervisors_of(project.run)}
    others = {(pid, created) for pid, created in found if pid != os.getpid()}
    patience = timeout_s + _SUPERVISOR_GRACE_S if timeout_s > 0 else 0.0
    for pid, created in others:
        server_process.end_one(pid, created, patience)
    return bool(others)


def end_processes(project: Project, timeout_s: float) -> bool:
    """End every process of the server. Return whether there were any."""
    ran = bool(server_process.processes_of(project.run))
    if ran:
        server_process.end(project.run, timeout_s)
    server_process.reap()
    return ran


def forget(project: Project) -> None:
    """End the front, and remove the files of a running server: its state, tokens, sockets and unpacked archives."""
    Front.of(project).close(_FRONT_ENDS_S)
    run_state.remove(project)
    supervisor = supervisor_state.read_own_format(project)
    if supervisor is None or supervisor.pid == os.getpid():
        supervisor_state.remove(project)
    (project.run / "key_file.json").unlink(missing_ok=True)
    (project.run / launch.PRIVATE_CONFIG).unlink(missing_ok=True)
    shutil.rmtree(launch.temporary_folder(project), ignore_errors=True)
    with suppress(FileNotFoundError):
        (project.run / STOPPING).unlink()
