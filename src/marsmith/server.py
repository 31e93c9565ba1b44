"""Start TorchServe for a project, and stop it to the last process.

The server runs in ``.marsmith/run/``: its effective config, key file, logs and temporary files lie there, so that two
projects on one host do not meet.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from marsmith import launch, preflight, run_state, server_process
from marsmith.errors import PreflightError, ServerError
from marsmith.formats.properties import render_properties
from marsmith.preflight import Flight
from marsmith.readiness import Outlook
from marsmith.run_state import RunState
from marsmith.server_config import FILE_NAME as CONFIG_FILE
from marsmith.server_config import addresses, uses_tokens
from marsmith.settings import Project

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0

_STOPPING = "stopping"
# A child that ended stays a zombie until its parent asks for it, so a caller that lives on must keep what it started.
_started: dict[int, subprocess.Popen[bytes]] = {}


def start(
    project: Project,
    *,
    foreground: bool = False,
    timeout_s: float = START_TIMEOUT_S,
    on_progress: Callable[[Outlook], None] | None = None,
) -> RunState:
    """Start TorchServe and return when every model really answers.

    Args:
        project: what to serve.
        foreground: whether the server's log also goes to stderr.
        timeout_s: how long it may take until every version is ready.
        on_progress: called with how far the server has come, several times a second.

    Raises:
        PreflightError: it was not started, because it could not have worked, or runs already.
        WorkerDiedError: a worker died; everything has been stopped.
        ServerError: it did not become ready; everything has been stopped.
    """
    with _lock(project):
        _clear(project)
        flight = preflight.check(project)
        state = _launch(project, flight, console=foreground)
    # Imported late: it needs the client, which `stop` does not.
    from marsmith.server_start import StartingServer

    try:
        StartingServer(project, state, flight.archives).wait(timeout_s, on_progress)
    except BaseException:
        stop(project)
        raise
    return state


def stop(project: Project, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the project's server with all its workers, and return whether there was one; logs stay.

    Args:
        project: whose server.
        timeout_s: how long the frontend may take to end by itself; then it is ended by force.
    """
    running = bool(server_process.processes_of(project.run))
    if running:
        (project.run / _STOPPING).touch()
        server_process.end(project.run, timeout_s)
    _reap()
    _forget(project)
    return running


def is_alive(state: RunState) -> bool:
    """Whether the frontend of this state still runs."""
    return server_process.frontend(state.pid, state.created) is not None


def wait_for_end(project: Project, state: RunState) -> None:
    """Return when the server has been stopped by ``stop``, from this process or another.

    Raises:
        ServerError: it ended by itself; what was left of it has been cleared away.
    """
    process = server_process.frontend(state.pid, state.created)
    if process is not None:
        process.wait()
    asked = (project.run / _STOPPING).exists() or not (project.run / run_state.FILE_NAME).exists()
    if not asked:
        stop(project)
        raise ServerError("TorchServe ended by itself", tip=f"the logs are in {project.run / 'logs'}")


@contextmanager
def _lock(project: Project) -> Iterator[None]:
    """Let one process at a time start a server for the project."""
    launch.make_private(project.run)
    with (project.run / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreflightError(f"another `marsmith serve` is starting a server for {project.root}") from None
        yield


def _clear(project: Project) -> None:
    """Refuse to start where a server runs; clear away what a dead one left."""
    try:
        state = run_state.read(project)
    except ServerError:
        state = None
    if state is not None and is_alive(state):
        raise PreflightError(
            f"a server already runs for {project.root} (pid {state.pid}, {state.inference})",
            tip="marsmith status shows it, marsmith stop stops it",
        )
    stop(project)


def _launch(project: Project, flight: Flight, *, console: bool) -> RunState:
    """Start the frontend and write down that it runs."""
    temporary = launch.temporary_folder(project)
    logs = _prepare(project, temporary)
    config_file = project.run / CONFIG_FILE
    config_file.write_text(render_properties(flight.config), encoding="ascii")
    config_file.chmod(0o600)
    command = launch.command(flight.java, flight.home, config_file, flight.config, temporary)
    environment = launch.environment(os.environ, project, temporary, console=console)
    with (logs / "console.log").open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=project.run,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if console else file,
            stderr=sys.stderr.fileno() if console else subprocess.STDOUT,
            # Ctrl-C in the terminal reaches marsmith, which then stops the server in order.
            start_new_session=True,
        )
    _started[process.pid] = process
    try:
        state = _state(project, flight, process.pid)
        run_state.write(project, state)
    except BaseException:
        stop(project)
        raise
    return state


def _prepare(project: Project, temporary: Path) -> Path:
    """Make the folders of a run and return the one for logs; the logs of the run before are kept."""
    launch.make_private(temporary)
    logs, previous = project.run / "logs", project.run / "logs.previous"
    if logs.exists():
        shutil.rmtree(previous, ignore_errors=True)
        logs.rename(previous)
    logs.mkdir()
    return logs


def _state(project: Project, flight: Flight, pid: int) -> RunState:
    import psutil

    where = addresses(flight.config)
    try:
        created = psutil.Process(pid).create_time()
    except psutil.Error:
        raise ServerError("TorchServe ended at once", tip=f"{project.run / 'logs' / 'console.log'}") from None
    return RunState(
        pid=pid,
        created=created,
        inference=where.inference.url,
        management=where.management.url,
        metrics=where.metrics.url,
        grpc_inference=where.grpc_inference.authority,
        grpc_management=where.grpc_management.authority,
        folder=project.run,
        tokens=uses_tokens(flight.config),
    )


def _reap() -> None:
    """Ask for the children that have ended."""
    for pid, process in list(_started.items()):
        if process.poll() is not None:
            del _started[pid]


def _forget(project: Project) -> None:
    """Remove what only a running server needs: its state, tokens, sockets and unpacked archives."""
    run_state.remove(project)
    (project.run / "key_file.json").unlink(missing_ok=True)
    shutil.rmtree(launch.temporary_folder(project), ignore_errors=True)
    (project.run / _STOPPING).unlink(missing_ok=True)
