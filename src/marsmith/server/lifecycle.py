"""Start TorchServe for a project, and stop it with all its processes.

The server runs in ``.marsmith/run/``, with its effective config, key file, logs and temporary files. Two projects on
one host are therefore separate.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from marsmith import child_processes, files, run_state
from marsmith.config.platform import Platform
from marsmith.config.project_settings import FrontKind, load_settings
from marsmith.config.server_config import addresses, started_with, uses_tokens
from marsmith.config.tls import ca_file
from marsmith.errors import FatalArchiveError, MarsmithError, NotRunningError, PreflightError, ServerError
from marsmith.files import LockedError
from marsmith.project import Project
from marsmith.run_state import Backend, NewerStateError, RunState
from marsmith.server import ending, launch, preflight, supervisor_state
from marsmith.server import processes as server_process
from marsmith.server import state as server_state
from marsmith.server.class_sharing import ClassSharing, class_sharing
from marsmith.server.front.door import Front
from marsmith.server.front.entrance import Entrance
from marsmith.server.front.ports import free_backend, private_config
from marsmith.server.preflight import PreflightResult
from marsmith.server.readiness import StartupStatus
from marsmith.server.start_plan import StartPlan, models_argument, plan_restart, plan_start, without_fatal
from marsmith.server.state import STOPPING
from marsmith.state import served_file
from marsmith.state.served_file import Remembered

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0

# List of the classes that the server has loaded, as Java writes it; in the server's temporary folder.
_CLASS_LIST = "classes.txt"


@dataclass(frozen=True)
class StartOptions:
    """How to start a server.

    Attributes:
        timeout_s: time limit until every version is ready, in seconds.
        console: file descriptor for the server's log, besides its files; None: no copy.
        fresh: whether to forget what the previous server served, and to serve the store as it is.
        strict: whether to refuse a start that leaves out an archive of the store.
        front: what is to be in front of TorchServe; None: what the project's settings say. A restart keeps it.
        platform: the platform that runs the container; None: there is none. A restart keeps its settings.
        listener: base URL of the supervisor's listener, which the front asks for a platform; empty: there is none.
        supervised: whether this process stays and watches the server.
        outlives: whether the server stays when this process ends.
        on_progress: called several times a second with the progress of the start.
        on_note: called with information for the user who starts the server.
    """

    timeout_s: float = START_TIMEOUT_S
    console: int | None = None
    fresh: bool = False
    strict: bool = False
    front: FrontKind | None = None
    platform: Platform | None = None
    listener: str = ""
    supervised: bool = False
    outlives: bool = True
    on_progress: Callable[[StartupStatus], None] | None = None
    on_note: Callable[[str], None] | None = None


def start(project: Project, options: StartOptions | None = None) -> RunState:
    """Start TorchServe, and return when every model answers.

    The versions, default versions and numbers of workers of the previous server are restored.

    Args:
        project: the project to serve.
        options: options; None for the defaults.

    Raises:
        PreflightError: the server was not started, because a check failed or because it runs already.
        WorkerDiedError: a worker died and no version is left, or the start is strict; the server has been stopped.
        ServerError: no version became ready, or one did not and the start is strict; the server has been stopped.
    """
    options = options or StartOptions()
    with _lock(project):
        _clear(project)
        with _forgetting_failure(project):
            if options.supervised:
                known = replace(supervisor_state.of_this_process(), listener=options.listener)
                supervisor_state.write(project, known)
            remembered = Remembered(None) if options.fresh else served_file.load(project)
            flight = preflight.check(
                project, remembered.state, strict=options.strict, front=options.front, platform=options.platform
            )
            plan = plan_start(project, flight, remembered, options.on_note, strict=options.strict)
            _report(options, plan.warnings)
            if options.fresh:
                served_file.forget(project)
            if flight.front == "envoy":
                _prepare_front(project, plan, options)
            state = _launch(project, plan, options)
    with _forgetting_failure(project):
        return _served(project, state, plan, options)


def _prepare_front(project: Project, plan: StartPlan, options: StartOptions) -> None:
    platform, port = options.platform, load_settings(project).front_metrics_port
    models = [archive.version[0] for archive in plan.serving.archives]
    probes = urlsplit(options.listener).port
    entrance = Entrance.of(platform, models, probes) if platform and probes else None
    guarded = platform is not None and platform.guards
    Front.of(project).prepare(plan.flight.config, port, entrance, without_tokens=guarded)


def _report(options: StartOptions, notes: Iterable[str]) -> None:
    for note in notes:
        if options.on_note:
            options.on_note(note)


def restart(project: Project, options: StartOptions) -> RunState:
    """Restart a server that died, with the same config and the same versions.

    Raises:
        ServerError: as ``start``.
    """
    with _lock(project):
        ending.end_processes(project, 0.0)
        plan = plan_restart(project)
        state = _launch(project, plan, options)
    return _served(project, state, plan, options)


def stop(project: Project, timeout_s: float = STOP_TIMEOUT_S, delay_s: float = 0.0) -> bool:
    """Stop the project's server with all its workers and its supervisor, and return whether there was one.

    Logs and the state for the next start are kept.

    Args:
        project: the project of the server.
        timeout_s: time for the frontend to end by itself, in seconds; then it is killed. 0: it is killed at once. This
            saves the two seconds in which TorchServe waits for further requests, and cuts requests in flight.
        delay_s: for how long requests are still answered, in seconds, while /ready says that the server is being
            stopped: a load balancer takes it out of service meanwhile.
    """
    if not project.run.exists():
        return False
    # The state should be saved, but damaged files must not prevent the end of the processes.
    with suppress(Exception):
        server_state.record(project)
    with suppress(OSError):
        (project.run / STOPPING).touch()
    if delay_s > 0 and runs_or_returns(project):
        _serve_on(project, delay_s)
    supervised = ending.end_supervisors(project, timeout_s)
    front = Front.of(project)
    front.drain()
    ran = ending.end_processes(project, timeout_s)
    ending.forget(project)
    front.forget_tokens()
    return ran or supervised


def _serve_on(project: Project, delay_s: float) -> None:
    try:
        time.sleep(delay_s)
    except BaseException:
        # The server goes on.
        (project.run / STOPPING).unlink(missing_ok=True)
        raise


def hold_requests(project: Project) -> None:
    """Let the front keep requests until TorchServe, which has died, is ready again."""
    front = Front.of(project)
    if front.is_prepared:
        # A restart leads the front to the new TorchServe in any case.
        with suppress(MarsmithError, OSError):
            front.hold(started_with(project))


def clear_away(project: Project) -> None:
    """End and remove the leftovers of a server that died."""
    ending.end_processes(project, STOP_TIMEOUT_S)
    ending.forget(project)


def is_alive(state: RunState) -> bool:
    """Return whether the frontend of this state runs."""
    return server_process.frontend(state.pid, state.created) is not None


def runs_or_returns(project: Project) -> bool:
    """Return whether the project's server runs, or its supervisor is restarting it."""
    try:
        state = run_state.read(project)
    except NotRunningError:
        return False
    return is_alive(state) or supervisor_state.read(project) is not None


def stop_was_asked(project: Project) -> bool:
    """Return whether the project's server is being stopped on purpose."""
    return (project.run / STOPPING).exists() or not (project.run / run_state.FILE_NAME).exists()


@contextmanager
def _lock(project: Project) -> Iterator[None]:
    """Allow one process at a time to start a server for the project."""
    launch.make_private(project.run)
    try:
        with files.lock(project.run / "lock", wait_s=0):
            yield
    except LockedError:
        raise PreflightError(f"another `marsmith serve` is starting a server for {project.root}") from None


@contextmanager
def _forgetting_failure(project: Project) -> Iterator[None]:
    """Remove everything if the start fails."""
    try:
        yield
    except BaseException:
        ending.forget(project)
        raise


def _clear(project: Project) -> None:
    """Refuse to start if a server runs or a later marsmith left its state; remove the leftovers of a dead server."""
    try:
        state = run_state.read(project)
    except NewerStateError:
        raise
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
    """Start the frontend and write its state."""
    flight = plan.flight
    temporary = launch.temporary_folder(project)
    logs = launch.prepare_folders(project, temporary)
    backend = free_backend() if flight.front == "envoy" else None
    private = private_config(flight.config, backend) if backend else None
    config_file = launch.write_configs(project, flight.config, private)
    sharing = _class_sharing(flight)
    sharing_options = sharing.start_options(temporary / _CLASS_LIST) if sharing else []
    command = launch.command(flight.java, flight.home, config_file, flight.config, temporary, sharing_options)
    command += models_argument(project, plan)
    environment = launch.environment(os.environ, project, temporary, console=options.console is not None)
    with (logs / "console.log").open("wb") as file:
        # Ctrl-C in the terminal reaches only marsmith, which then stops the server in order.
        process = starter(options)(
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
        state = _state(project, plan, process.pid, backend)
        run_state.write(project, state)
    except BaseException:
        ending.end_processes(project, 0.0)
        raise
    return state


def _served(project: Project, state: RunState, plan: StartPlan, options: StartOptions) -> RunState:
    """Wait for a launched server. If an archive ends TorchServe itself, launch it again without that archive."""
    while True:
        try:
            return _ready(project, state, plan, options)
        except FatalArchiveError as error:
            if stop_was_asked(project):
                raise
            plan = without_fatal(plan, error, strict=options.strict)
            _report(options, [str(each) for each in plan.left_out if each.file == error.file])
        with _lock(project):
            state = _launch(project, plan, options)


def _ready(project: Project, state: RunState, plan: StartPlan, options: StartOptions) -> RunState:
    # Imported late, because it needs the client and `stop` does not.
    from marsmith.server.startup import StartingServer

    try:
        starting = StartingServer(project, state, plan.serving, options.on_note, strict=options.strict)
        versions = starting.wait(options.timeout_s, options.on_progress)
        contents = {stored.version: server_state.content_of(stored.archive) for stored in starting.archives}
        server_state.remember(project, versions, plan.configured, contents)
        state = replace(starting.state, ready=True)
        if state.backend is not None:
            Front.of(project).open(plan.flight.config, state, starter(options))
    except BaseException:
        ending.end_processes(project, STOP_TIMEOUT_S)
        raise
    run_state.write(project, state)
    _share_classes(project, plan.flight, options)
    return state


def starter(options: StartOptions) -> Callable[..., subprocess.Popen[Any]]:
    """Return the function that starts a process of the server."""
    return child_processes.start_detached if options.outlives else child_processes.start


def _class_sharing(flight: PreflightResult) -> ClassSharing | None:
    classes = launch.class_path(flight.home, flight.config)
    return class_sharing(flight.java.executable, classes, launch.java_options(flight.config))


def _share_classes(project: Project, flight: PreflightResult, options: StartOptions) -> None:
    """Speed up the next start, if this one was the first."""
    temporary = launch.temporary_folder(project)
    sharing = _class_sharing(flight)
    if sharing is not None:
        environment = launch.environment(os.environ, project, temporary, console=False)
        sharing.make_in_background(temporary / _CLASS_LIST, environment, starter(options))


def _state(project: Project, plan: StartPlan, pid: int, backend: Backend | None) -> RunState:
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
        backend=backend,
    )
