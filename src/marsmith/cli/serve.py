"""Start TorchServe, with Envoy in front of it, and wait until every model answers.

    marsmith serve                 # in the background; `marsmith stop` stops it
    marsmith serve --foreground    # attached, for systemd and containers; SIGTERM and Ctrl-C stop it
    marsmith serve --fresh         # forget the versions, defaults and workers of the server before
    marsmith serve --strict        # refuse to start where an archive would be left out
    marsmith serve --front none    # without Envoy, which keeps requests while TorchServe restarts
    marsmith serve serve           # what SageMaker runs: port 8080, /ping, /invocations, /opt/ml/model

The versions of the previous server are served again, with its default versions and workers, and so is every new archive
in the model store. Ports, Java, modules and archives are checked before the start. An archive that cannot be served is
left out, with one line for the reason. Ready means that every worker is READY, and that every version has answered an
example of its archive as it did when the archive was built. A version whose worker dies before that, or that answers
differently, is left out as well. If no version is left, everything is stopped and the exit code is 1. Later a
supervisor restarts TorchServe when it dies; in the background it is a small separate process.

In a container of SageMaker, Vertex AI or KServe the environment says so, and then the port, the paths and the folder of
the model are what the platform expects. With --foreground the variable PORT sets the port, at every address.
MARSMITH_PLATFORM names the platform (sagemaker, vertex, kserve), or none.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note
from marsmith.cli.status import print_status
from marsmith.config.platform import find_platform
from marsmith.errors import ConfigError, MarsmithError, UsageError, WorkerDiedError
from marsmith.project import Project, find_project
from marsmith.server.supervisor import DEFAULT_LIMIT, RestartPolicy, parse_restart

if TYPE_CHECKING:
    from marsmith.config.platform import Platform
    from marsmith.monitoring.exporter import Exporter
    from marsmith.server.duty import Duty
    from marsmith.server.log import JsonLog
    from marsmith.server.outlook import Outlook
    from marsmith.server.readiness import StartupStatus
    from marsmith.server.systemd import ServiceManager


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "argument", nargs="?", choices=("serve",), help="what SageMaker runs an image with: serve as it expects"
    )
    parser.add_argument("--foreground", action="store_true", help="stay attached, with the server's log on stderr")
    parser.add_argument(
        "--restart",
        default=str(DEFAULT_LIMIT),
        metavar="N|always|no",
        help="maximum number of restarts in a row if TorchServe dies within a minute (%(default)s)",
    )
    parser.add_argument(
        "--log", choices=("plain", "json"), default="plain", help="form of the log in the foreground (%(default)s)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget the versions, defaults and workers of the previous server"
    )
    parser.add_argument(
        "--front",
        choices=("envoy", "none"),
        help="what keeps the public address of the inference API, for this start (front in config/marsmith.yaml)",
    )
    parser.add_argument("--strict", action="store_true", help="start only if no archive has to be left out")
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="time limit until everything is ready (%(default)g)",
    )
    # Internal: starts a supervisor in the background.
    parser.add_argument("--adopt", action="store_true", help=argparse.SUPPRESS)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Start the server, and in the foreground stay until it ends."""
    project = find_project()
    policy = parse_restart(args.restart)
    if args.adopt:
        return _adopt(project, args, policy)
    platform = find_platform(os.environ, serves=args.argument == "serve", foreground=args.foreground)
    if not args.foreground and platform is None:
        if args.log == "json":
            raise UsageError("--log json goes with --foreground", tip="in the background the logs are files")
        return _in_background(project, args, policy)
    if args.log == "json":
        return _in_foreground_as_json(project, args, policy, platform)
    with _progress(quiet=True) as on_progress:
        _in_foreground(project, args, policy, _Output(sys.stderr.fileno(), note, on_progress), platform)
    return 0


def _in_background(project: Project, args: argparse.Namespace, policy: RestartPolicy) -> int:
    from marsmith.server import lifecycle
    from marsmith.server.supervisor import detach

    try:
        with _progress(quiet=False) as on_progress:
            options = lifecycle.StartOptions(
                timeout_s=args.timeout,
                fresh=args.fresh,
                strict=args.strict,
                front=args.front,
                on_progress=on_progress,
                on_note=note,
            )
            lifecycle.start(project, options)
            if policy.limit != 0:
                detach(project, policy, args.timeout)
    except KeyboardInterrupt:
        lifecycle.stop(project)
        note("stopped")
        raise
    _report(project, as_json=args.json)
    return 0


class _Output:
    """Output of a server in the foreground.

    Attributes:
        console: file descriptor for the server's log.
        tell: prints one sentence.
        on_progress: called with the progress of a start.
    """

    def __init__(self, console: int, tell: Callable[[str], None], on_progress: Callable[[StartupStatus], None]) -> None:
        self.console = console
        self.tell = tell
        self.on_progress = on_progress


def _in_foreground(
    project: Project, args: argparse.Namespace, policy: RestartPolicy, output: _Output, platform: Platform | None
) -> None:
    from marsmith.server import lifecycle
    from marsmith.server.outlook import Outlook
    from marsmith.server.supervisor import Supervisor
    from marsmith.server.systemd import ServiceManager

    manager = ServiceManager.from_environment(os.environ)
    options = lifecycle.StartOptions(
        timeout_s=args.timeout,
        console=output.console,
        fresh=args.fresh,
        strict=args.strict,
        front=args.front,
        platform=platform,
        supervised=True,
        on_progress=_reporting(manager, output.on_progress),
        on_note=output.tell,
    )
    outlook = Outlook()
    try:
        with _duties(project, outlook, output.tell, platform) as duties:
            options = replace(options, listener=outlook.listener)
            state = lifecycle.start(project, options)
            if args.json or args.log == "plain":
                _report(project, as_json=args.json)
            output.tell(f"serving at {state.inference}")
            manager.ready(f"serving at {state.inference}")
            Supervisor(project, policy, options, manager, output.tell, duties, outlook).run(state)
    except KeyboardInterrupt:
        manager.stopping()
        lifecycle.stop(project)
    output.tell("stopped")


def _in_foreground_as_json(
    project: Project, args: argparse.Namespace, policy: RestartPolicy, platform: Platform | None
) -> int:
    from marsmith.server.log import JsonLog

    with JsonLog(sys.stderr.fileno()) as log:
        shown: set[str] = set()
        output = _Output(log.source, log.tell, lambda seen: _once(shown, _words(seen), log.tell))
        try:
            _in_foreground(project, args, policy, output, platform)
        except MarsmithError as error:
            _tell_error(log, error)
            return error.exit_code
    return 0


def _adopt(project: Project, args: argparse.Namespace, policy: RestartPolicy) -> int:
    """Watch a server that another process has started."""
    from marsmith import run_state
    from marsmith.server import lifecycle
    from marsmith.server.outlook import Outlook
    from marsmith.server.supervisor import Supervisor
    from marsmith.server.systemd import ServiceManager

    options = lifecycle.StartOptions(timeout_s=args.timeout, supervised=True)
    outlook = Outlook()
    try:
        with _duties(project, outlook, _dated) as duties:
            supervisor = Supervisor(project, policy, options, ServiceManager(), _dated, duties, outlook)
            supervisor.run(run_state.read(project))
    except KeyboardInterrupt:
        lifecycle.stop(project)
    return 0


@contextmanager
def _duties(
    project: Project, outlook: Outlook, tell: Callable[[str], None], platform: Platform | None = None
) -> Iterator[tuple[Duty, ...]]:
    """Yield what a supervisor does beside its watch. Probes are answered already while the server starts."""
    from marsmith.deploy.traffic.drive import RolloutDuty
    from marsmith.monitoring.drift.duty import DriftDuty
    from marsmith.monitoring.retention import RetentionDuty

    drift = DriftDuty(project, lambda: {each.model_name for each in outlook.look.versions}, tell)
    duties = (RolloutDuty(project, tell), drift, RetentionDuty(project, tell))
    exporter = _exporter(project, outlook, tell, platform)
    if exporter is None:
        yield duties
        return
    try:
        try:
            exporter.listen()
        except MarsmithError:
            # Elsewhere the duty says so, and goes on trying.
            if platform is not None:
                raise
        yield (*duties, exporter)
    finally:
        exporter.close()


def _exporter(
    project: Project, outlook: Outlook, tell: Callable[[str], None], platform: Platform | None
) -> Exporter | None:
    from marsmith.config.project_settings import listener_address, load_settings
    from marsmith.config.server_config import ListenAddress

    try:
        address = listener_address(load_settings(project))
    except ConfigError:
        # The preflight reports it, together with all other problems.
        return None
    if address is None and platform is not None:
        # The health check of a platform is answered there.
        address = ListenAddress("listener", "http", "127.0.0.1", 0)
    if address is None:
        return None
    from marsmith.monitoring.exporter import Exporter
    from marsmith.monitoring.exporter.drift import DriftSource

    return Exporter(project, outlook, address, tell, [DriftSource(project)])


def _report(project: Project, *, as_json: bool) -> None:
    """Print the addresses of the server and its versions."""
    from marsmith.server.status import server_status

    print_status(project, server_status(project), as_json=as_json)
    sys.stdout.flush()


def _reporting(
    manager: ServiceManager, on_progress: Callable[[StartupStatus], None]
) -> Callable[[StartupStatus], None]:
    """Return a callback that also reports the progress of the start to the service manager."""
    shown: set[str] = set()

    def report(seen: StartupStatus) -> None:
        manager.alive()
        _once(shown, _words(seen), manager.status)
        on_progress(seen)

    return report


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[StartupStatus], None]]:
    """Show on stderr what the server waits for: one changing line in a terminal, otherwise a line per change."""
    if not sys.stderr.isatty() or quiet:
        shown: set[str] = set()
        yield lambda seen: _once(shown, _words(seen), note)
        return
    from rich.console import Console

    with Console(stderr=True).status("starting TorchServe") as line:
        yield lambda seen: line.update(_words(seen))


def _once(shown: set[str], text: str, tell: Callable[[str], None]) -> None:
    if text not in shown:
        shown.add(text)
        tell(text)


def _words(seen: StartupStatus) -> str:
    if seen.is_ready:
        return "ready"
    if not seen.listening:
        return "starting TorchServe"
    return "; ".join(f"{name}:{version}: {reason}" for (name, version), reason in seen.waiting.items())


def _dated(text: str) -> None:
    from datetime import datetime

    note(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}")


def _tell_error(log: JsonLog, error: MarsmithError) -> None:
    more = {"tip": error.tip} if error.tip else {}
    if isinstance(error, WorkerDiedError) and error.traceback:
        more["traceback"] = error.traceback
    log.tell(error.message, level="ERROR", **more)
