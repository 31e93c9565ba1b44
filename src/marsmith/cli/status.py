"""Show the addresses of the project's server, its versions and their traffic.

    marsmith status
    marsmith status --json
    marsmith status --watch --interval 5
    marsmith status --url http://127.0.0.1:8080 --key-file FILE    # the versions of a host

Archives that the server does not serve are listed below the table, with the reasons, and so are rollouts that go on.
"unwatched" means that nobody drives a rollout: its share stays, and the next supervisor goes on with it.

The exit code is 1 if no server runs. WORKERS is the number of READY workers and of all workers, QUEUED the number of
waiting requests and its maximum. By default, times are means since the start of the server. With --watch, rates and
times are those of the last interval, and Ctrl-C ends the command. With --json as well, each interval is one line.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.child_processes import StopRequestedError
from marsmith.cli.output import add_json_flag, json_text, note, print_fields, print_json, print_table, printable
from marsmith.errors import ClientError, ConfigError, NotRunningError, UsageError
from marsmith.project import Project, find_project

if TYPE_CHECKING:
    from rich.console import RenderableType

    from marsmith.client.blocking_client import VersionStatus
    from marsmith.client.metrics import Traffic
    from marsmith.deploy.traffic.state import RolloutState
    from marsmith.server.status import ServerStatus

COLUMNS = (
    *("MODEL", "VERSION", "DEFAULT", "WORKERS", "BATCH", "DELAY_MS", "QUEUED"),
    *("REQUESTS", "REQ/S", "LATENCY_MS", "QUEUE_MS", "INFER_MS", "RESTARTS", "MEMORY_MB"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--watch", action="store_true", help="repeat until Ctrl-C")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="time between two updates (%(default)g)"
    )
    parser.add_argument("--url", metavar="URL", help="instead, the versions of the host at this address")
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="with --url: that host's key_file.json")
    parser.add_argument("--ca-file", metavar="FILE", type=Path, help="with --url: certificates to trust there, in PEM")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the status."""
    if args.url is not None:
        _print_host(args)
        return
    for flag in ("key_file", "ca_file"):
        if getattr(args, flag) is not None:
            raise UsageError(f"--{flag.replace('_', '-')} needs --url")
    from marsmith.server.status import server_status

    project = find_project()
    if not args.watch:
        print_status(project, server_status(project), as_json=args.json)
        return
    if not 0.1 <= args.interval <= 86400:
        raise UsageError(f"--interval {args.interval:g} is not from 0.1 to 86400 seconds")
    try:
        _watch(project, args.interval, as_json=args.json)
    except KeyboardInterrupt as error:
        # Ctrl-C is the normal end; other signals are handled elsewhere.
        if isinstance(error, StopRequestedError) and error.number != signal.SIGINT:
            raise


def _print_host(args: argparse.Namespace) -> None:
    from marsmith.cli.models import print_versions
    from marsmith.client.blocking_client import Client

    if args.watch:
        raise UsageError("--watch is about the project's own server: leave out --url")
    with Client(args.url, args.url, key_file=args.key_file, ca_file=args.ca_file) as client:
        print_versions(client, as_json=args.json)


def print_status(project: Project, status: ServerStatus, *, as_json: bool) -> None:
    """Print the addresses, then one line per version; `serve` prints the same when the server is ready."""
    if as_json:
        print_json(_data(project, status))
        return
    print_fields(_fields(status))
    print()
    if status.versions:
        print_table(COLUMNS, [_row(status, version) for version in status.versions])
    else:
        print("no model is registered")
    for line in _notes(project, status):
        print(line)


def _watch(project: Project, interval_s: float, *, as_json: bool) -> None:
    looks = _looks(project, interval_s)
    if as_json:
        for seen in looks:
            record = {"running": False, "reason": seen} if isinstance(seen, str) else _data(project, seen)
            print(json_text({"running": True, **record}), flush=True)
    elif sys.stdout.isatty():
        _watch_in_terminal(project, looks)
    else:
        for seen in looks:
            if isinstance(seen, str):
                note(seen)
            else:
                print(time.strftime("%Y-%m-%dT%H:%M:%S"))
                print_table(COLUMNS, [_row(seen, version) for version in seen.versions])
                print(*_notes(project, seen), sep="\n", flush=True)


def _looks(project: Project, interval_s: float) -> Iterator[ServerStatus | str]:
    """Yield the status forever; yield a text if no server runs or it does not answer.

    Raises:
        NotRunningError: the server has not been running so far.
    """
    from marsmith.server.status import StatusWatch

    watch = StatusWatch(project)
    yield watch.look()
    while True:
        time.sleep(interval_s)
        try:
            yield watch.look()
        except (NotRunningError, ClientError) as error:
            yield error.message


def _watch_in_terminal(project: Project, looks: Iterator[ServerStatus | str]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        for seen in looks:
            live.update(_screen(project, seen), refresh=True)


def _screen(project: Project, seen: ServerStatus | str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if isinstance(seen, str):
        return Text(seen)
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index < 3 else "right", no_wrap=True)
    for version in seen.versions:
        table.add_row(*(Text(str(cell)) for cell in _row(seen, version)))
    about = "  ".join(f"{name} {value}" for name, value in _about(seen).items())
    notes = [Text(line, style="yellow") for line in _notes(project, seen)]
    return Group(Text(f"{seen.state.inference}  {about}"), Text(""), table, *notes)


def _data(project: Project, status: ServerStatus) -> dict[str, object]:
    from marsmith.deploy.traffic import view

    return {**status.as_data(), "rollouts": [view.summary(state) for state in _rollouts(project)]}


def _notes(project: Project, status: ServerStatus) -> list[str]:
    """Return the lines below the table: archives that are left out, rollouts that go on, and a missing listener."""
    from marsmith.deploy.traffic import view

    lines = [*map(str, status.state.left_out), *map(view.sentence, _rollouts(project)), *_unheard(project, status)]
    return [printable(line) for line in lines]


def _unheard(project: Project, status: ServerStatus) -> Iterator[str]:
    """Yield that the supervisor does not listen, if it should."""
    from marsmith.config.project_settings import listener_address, load_settings

    with suppress(ConfigError):
        address = listener_address(load_settings(project))
        if address and status.supervisor and not status.supervisor.listener:
            yield f"no /metrics and no /ready: the supervisor does not listen at {address.authority}, its log says why"


def _rollouts(project: Project) -> list[RolloutState]:
    from marsmith.deploy.traffic import view

    return [state for state in view.rollouts(project) if not state.is_over]


def _fields(status: ServerStatus) -> dict[str, object]:
    return {
        **status.addresses(),
        **_front(status),
        **_listener(status),
        "pid": status.state.pid,
        "tokens": _on(status.state.tokens),
        **_about(status),
    }


def _front(status: ServerStatus) -> dict[str, object]:
    """Return the front, and what is behind it."""
    front = status.front
    if front is None:
        return {"front": "none"}
    process = f"pid {front.pid}, {_mega(front.memory_bytes or 0)} MB" if front.pid else "starts again"
    behind = f"{front.inference}, gRPC {front.grpc_inference}"
    return {"front": f"Envoy, {process}", "behind it": behind, "front metrics": front.metrics}


def _listener(status: ServerStatus) -> dict[str, object]:
    """Return where the supervisor answers /metrics and /ready."""
    return {"listener": status.supervisor.listener} if status.supervisor and status.supervisor.listener else {}


def _about(status: ServerStatus) -> dict[str, str]:
    """Return information about the frontend and its supervisor."""
    supervisor = status.supervisor
    watched = f"pid {supervisor.pid}, {supervisor.restarts} restarts" if supervisor else "none"
    memory = status.memory_bytes.get(status.state.pid, 0)
    return {"uptime": _duration(status.uptime_s), "memory": f"{_mega(memory)} MB", "supervisor": watched}


def _row(status: ServerStatus, version: VersionStatus) -> tuple[object, ...]:
    traffic = status.traffic_of(version)
    restarts = status.worker_restarts(version)
    return (
        version.model_name,
        version.model_version,
        "yes" if version.default else "",
        f"{version.ready_workers}/{max(version.min_workers, len(version.workers))}",
        version.batch_size,
        version.max_batch_delay_ms,
        f"{version.queue_pending}/{version.queue_pending + version.queue_remaining}",
        traffic.requests_total if traffic else "-",
        *(map(_rounded, _times(traffic)) if traffic else "-" * 4),
        "-" if restarts is None else restarts,
        _mega(status.worker_memory_bytes(version)),
    )


def _times(traffic: Traffic) -> tuple[float | None, ...]:
    return traffic.requests_per_second, traffic.latency_ms, traffic.queue_ms, traffic.infer_ms


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _mega(count: int) -> int:
    return round(count / 1e6)


def _on(value: bool) -> str:
    return "on" if value else "off"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
