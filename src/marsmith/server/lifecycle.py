"""Start TorchServe for a project, and stop it to the last process.

The server runs in ``.marsmith/run/``: its effective config, key file, logs and temporary files lie there, so that two
projects on one host do not meet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marsmith import child_processes, files, run_state
from marsmith.config.properties import render_properties
from marsmith.config.server_config import FILE_NAME as CONFIG_FILE
from marsmith.config.server_config import addresses, uses_tokens
from marsmith.config.tls import ca_file
from marsmith.errors import FatalArchiveError, NotRunningError, PreflightError, ServerError
from marsmith.files import LockedError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import launch, preflight, supervisor_state
from marsmith.server import processes as server_process
from marsmith.server import state as server_state
from marsmith.server.class_sharing import ClassSharing, class_sharing
from marsmith.server.preflight import PreflightResult
from marsmith.server.readiness import StartupStatus
from marsmith.server.start_plan import StartPlan, models_argument, plan_restart, plan_start, without_fatal
from marsmith.server.state import STOPPING
from marsmith.state import served_file
from marsmith.state.served_file import Remembered

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0

# In the server's temporary folder: the classes that it has loaded, as far as Java writes them down.
_CLASS_LIST = "classes.txt"
# What a supervisor needs beyond the time of the server, to notice and to clear away.
_SUPERVISOR_GRACE_S = 10.0


@dataclass(frozen=True)
class StartOptions:
    """How to start a server.

    Attributes:
        timeout_s: how long it may take until every version is ready.
        console: the file descriptor that the server's log goes to besides its files; None: nowhere.
        fresh: forget what the server before served, and serve the store as it is.
        strict: refuse to start where an archive of the store would be left out, before the start or because it fails.
        supervised: whether this process stays and watches the server.
        outlives: whether the server stays when this process ends.
        on_progress: called with how far the server has come, several times a second.
        on_note: called with what somebody who starts the server should know.
    """

    timeout_s: float = START_TIMEOUT_S
    console: int | None = None
    fresh: bool = False
    strict: bool = False
    supervised: bool = False
    outlives: bool = True
    on_progress: Callable[[StartupStatus], None] | None = None
    on_note: Callable[[str], None] | None = None


def start(project: Project, options: StartOptions | None = None) -> RunState:
    """Start TorchServe and return when every model really answers.

    What the server before served is served again: its versions, its default versions and its workers.

    Args:
        project: what to serve.
        options: how; None: the usual ones.

    Raises:
        PreflightError: it was not started, because it could not have worked, or runs already.
        WorkerDiedError: a worker died, and no version is left to serve, or it is strict; everything has been stopped.
        ServerError: no version became ready, or it is strict and one did not; everything has been stopped.
    """
    options = options or StartOptions()
    with _lock(project):
        _clear(project)
        with _forgetting_failure(project):
            if options.supervised:
                supervisor_state.write(project, supervisor_state.of_this_process())
            remembered = Remembered(None) if options.fresh else served_file.load(project)
            flight = preflight.check(project, remembered.state, strict=options.strict)
            plan = plan_start(project, flight, remembered, options.on_note, strict=options.strict)
            _tell(options, plan.warnings)
            if options.fresh:
                served_file.forget(project)
            state = _launch(project, plan, options)
    with _forgetting_failure(project):
        return _served(project, state, plan, options)


def _tell(options: StartOptions, notes: Iterable[str]) -> None:
    for note in notes:
        if options.on_note:
            options.on_note(note)


def restart(project: Project, options: StartOptions) -> RunState:
    """Start a server that died once more, with the config that it had and exactly what it served.

    Raises:
        ServerError: as ``start``.
    """
    with _lock(project):
        _end(project, 0.0)
        plan = plan_restart(project)
        state = _launch(project, plan, options)
    return _served(project, state, plan, options)


def stop(project: Project, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Stop the project's server with all its workers and its supervisor, and return whether there was one.

    Logs stay, and so does what is remembered for the next start.

    Args:
        project: whose server.
        timeout_s: how long the frontend may take to end by itself; then it is ended by force. 0: by force at once,
            which saves the two seconds that TorchServe waits for more requests, and cuts those in hand.
    """
    if not project.run.exists():
        return False
    # What is remembered is worth having, and nothing that is damaged may keep the processes from being ended.
    with suppress(Exception):
        server_state.record(project)
    with suppress(OSError):
        (project.run / STOPPING).touch()
    supervised = _end_supervisors(project, timeout_s)
    ran = _end(project, timeout_s)
    _forget(project)
    return ran or supervised


def clear_away(project: Project) -> None:
    """End and remove what is left of a server that died."""
    _end(project, STOP_TIMEOUT_S)
    _forget(project)


def is_alive(state: RunState) -> bool:
    """Whether the frontend of this state still runs."""
    return server_process.frontend(state.pid, state.created) is not None


def runs_or_returns(project: Project) -> bool:
    """Whether the project's server runs, or its supervisor is starting it again."""
    try:
        state = run_state.read(project)
    except NotRunningError:
        return False
    return is_alive(state) or supervisor_state.read(project) is not None


def stop_was_asked(project: Project) -> bool:
    """Whether somebody is stopping the project's server on purpose."""
    return (project.run / STOPPING).exists() or not (project.run / run_state.FILE_NAME).exists()


@contextmanager
def _lock(project: Project) -> Iterator[None]:
    """Let one process at a time start a server for the project."""
    launch.make_private(project.run)
    try:
        with files.lock(project.run / "lock", wait_s=0):
            yield
    except LockedError:
        raise PreflightError(f"another `marsmith serve` is starting a server for {project.root}") from None


@contextmanager
def _forgetting_failure(project: Project) -> Iterator[None]:
    """Leave nothing behind where a start fails."""
    try:
        yield
    except BaseException:
        _forget(project)
        raise


def _clear(project: Project) -> None:
    """Refuse to start where a server runs; clear away what a dead one left."""
    try:
        state = run_state.read(project)
    except ServerError:
        state = None
    tip = "marsmith status shows it, marsmith stop stops it; a second server needs a project with other ports"
    if state is not None and is_alive(state):
        raise PreflightError(f"a server already runs for {project.root} (pid {state.pid}, {state.inference})", tip=tip)
    supervisor = supervisor_state.read(project)
    if supervisor is not None and supervisor.pid != os.getpid():
        raise PreflightError(
            f"a supervisor (pid {supervisor.pid}) is starting the server of {project.root}: {supervisor.doing}",
            tip=tip,
        )
    if state is not None:
        server_process.wait_for_threads(state.pid, state.created, STOP_TIMEOUT_S)
    clear_away(project)


def _launch(project: Project, plan: StartPlan, options: StartOptions) -> RunState:
    """Start the frontend and write down that it runs."""
    flight = plan.flight
    temporary = launch.temporary_folder(project)
    logs = _prepare(project, temporary)
    config_file = project.run / CONFIG_FILE
    config_file.write_text(render_properties(flight.config), encoding="ascii")
    config_file.chmod(0o600)
    sharing = _class_sharing(flight)
    sharing_options = sharing.start_options(temporary / _CLASS_LIST) if sharing else []
    command = launch.command(flight.java, flight.home, config_file, flight.config, temporary, sharing_options)
    command += models_argument(project, plan)
    environment = launch.environment(os.environ, project, temporary, console=options.console is not None)
    with (logs / "console.log").open("wb") as file:
        # Ctrl-C in the terminal reaches marsmith alone, which then stops the server in order.
        process = _starter(options)(
            command,
            environment,
            cwd=project.run,
            stdin=subprocess.DEVNULL,
            stdout=file if options.console is None else options.console,
            stderr=subprocess.STDOUT,
            umask=launch.UMASK,
        )
    server_process.remember_child(process)
    try:
        state = _state(project, plan, process.pid)
        run_state.write(project, state)
    except BaseException:
        _end(project, 0.0)
        raise
    return state


def _served(project: Project, state: RunState, plan: StartPlan, options: StartOptions) -> RunState:
    """Wait for a server that was launched; launch it again without an archive that has ended TorchServe itself."""
    while True:
        try:
            return _ready(project, state, plan, options)
        except FatalArchiveError as error:
            if stop_was_asked(project):
                raise
            plan = without_fatal(plan, error, strict=options.strict)
            _tell(options, [str(each) for each in plan.left_out if each.file == error.file])
        with _lock(project):
            state = _launch(project, plan, options)


def _ready(project: Project, state: RunState, plan: StartPlan, options: StartOptions) -> RunState:
    # Imported late: it needs the client, which `stop` does not.
    from marsmith.server.startup import StartingServer

    try:
        starting = StartingServer(project, state, plan.serving, options.on_note, strict=options.strict)
        versions = starting.wait(options.timeout_s, options.on_progress)
        contents = {stored.version: server_state.content_of(stored.archive) for stored in starting.archives}
        server_state.remember(project, versions, plan.configured, contents)
    except BaseException:
        _end(project, STOP_TIMEOUT_S)
        raise
    state = replace(starting.state, ready=True)
    run_state.write(project, state)
    _share_classes(project, plan.flight, options)
    return state


def _starter(options: StartOptions) -> Callable[..., subprocess.Popen[Any]]:
    return child_processes.start_detached if options.outlives else child_processes.start


def _class_sharing(flight: PreflightResult) -> ClassSharing | None:
    classes = launch.class_path(flight.home, flight.config)
    return class_sharing(flight.java.executable, classes, launch.java_options(flight.config))


def _share_classes(project: Project, flight: PreflightResult, options: StartOptions) -> None:
    """Let the next start of a server be quicker, where this one was the first."""
    temporary = launch.temporary_folder(project)
    sharing = _class_sharing(flight)
    if sharing is not None:
        environment = launch.environment(os.environ, project, temporary, console=False)
        sharing.make_in_background(temporary / _CLASS_LIST, environment, _starter(options))


def _prepare(project: Project, temporary: Path) -> Path:
    """Make the folders of a run and return the one for logs; the logs of the run before are kept."""
    shutil.rmtree(temporary, ignore_errors=True)
    launch.make_private(temporary)
    logs, previous = project.run / "logs", project.run / "logs.previous"
    if logs.exists():
        shutil.rmtree(previous, ignore_errors=True)
        logs.rename(previous)
    logs.mkdir()
    return logs


def _state(project: Project, plan: StartPlan, pid: int) -> RunState:
    import psutil

    config = plan.flight.config
    where = addresses(config)
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
        tokens=uses_tokens(config),
        ca_file=ca_file(config),
        left_out=plan.left_out,
    )


def _end_supervisors(project: Project, timeout_s: float) -> bool:
    """End the supervisor, which ends the server first; return whether there was one.

    One in the background is known by its environment as well, when the file that names it is damaged.
    """
    known = supervisor_state.read(project)
    found = {(known.pid, known.created)} if known else set()
    found |= {(each.pid, each.create_time()) for each in server_process.supervisors_of(project.run)}
    others = {(pid, created) for pid, created in found if pid != os.getpid()}
    patience = timeout_s + _SUPERVISOR_GRACE_S if timeout_s > 0 else 0.0
    for pid, created in others:
        server_process.end_one(pid, created, patience)
    return bool(others)


def _end(project: Project, timeout_s: float) -> bool:
    """End every process of the server; return whether there were any."""
    ran = bool(server_process.processes_of(project.run))
    if ran:
        server_process.end(project.run, timeout_s)
    server_process.reap()
    return ran


def _forget(project: Project) -> None:
    """Remove what only a running server needs: its state, tokens, sockets and unpacked archives."""
    run_state.remove(project)
    supervisor = supervisor_state.read(project)
    if supervisor is None or supervisor.pid == os.getpid():
        supervisor_state.remove(project)
    (project.run / "key_file.json").unlink(missing_ok=True)
    shutil.rmtree(launch.temporary_folder(project), ignore_errors=True)
    with suppress(FileNotFoundError):
        (project.run / STOPPING).unlink()
