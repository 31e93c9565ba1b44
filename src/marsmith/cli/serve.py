"""Start TorchServe and wait until every model really answers.

    marsmith serve                 # in the background; `marsmith stop` stops it
    marsmith serve --foreground    # attached, for systemd and containers; SIGTERM and Ctrl-C stop it

Everything in the model store is served, as config.properties says. Before the start ports, Java, modules and archives
are checked. Ready means: every worker is READY, and every version has answered an example of its archive as it did when
the archive was built. When a worker dies, its traceback is printed, everything is stopped and the exit code is 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note
from marsmith.cli.status import print_status
from marsmith.settings import Project, find_project

if TYPE_CHECKING:
    from marsmith.readiness import Outlook
    from marsmith.run_state import RunState


class _StopRequestedError(BaseException):
    """The process was asked to end: it is no failure, and nothing between may catch it as one."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--foreground", action="store_true", help="stay attached, with the server's log on stderr")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="time until everything is ready (%(default)g)"
    )
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Start the server, and in the foreground stay until it ends."""
    project = find_project()
    try:
        with _stop_signals():
            state = _start(project, args)
            _report(project, args)
            if args.foreground:
                _stay(project, state)
    except _StopRequestedError:
        from marsmith import server

        server.stop(project)
        note("stopped")
    return 0


def _start(project: Project, args: argparse.Namespace) -> RunState:
    from marsmith import server

    with _progress(quiet=args.foreground) as on_progress:
        return server.start(project, foreground=args.foreground, timeout_s=args.timeout, on_progress=on_progress)


def _report(project: Project, args: argparse.Namespace) -> None:
    """Say where the server listens and what it serves."""
    from marsmith.server_status import server_status

    print_status(server_status(project), as_json=args.json)
    sys.stdout.flush()


def _stay(project: Project, state: RunState) -> None:
    from marsmith import server

    server.wait_for_end(project, state)


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into an orderly stop."""

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        # A second signal must not interrupt the stop.
        for each in kept:
            signal.signal(each, signal.SIG_IGN)
        raise _StopRequestedError

    kept = {number: signal.signal(number, request_stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    except _StopRequestedError:
        raise
    except BaseException:
        _restore(kept)
        raise
    else:
        _restore(kept)


def _restore(handlers: dict[signal.Signals, signal._HANDLER]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Outlook], None]]:
    """Show on stderr what the server waits for: a line that changes in a terminal, a line for each change elsewhere."""
    if not sys.stderr.isatty() or quiet:
        told: set[str] = set()

        def tell(seen: Outlook) -> None:
            text = _words(seen)
            if text not in told:
                told.add(text)
                note(text)

        yield tell
        return
    from rich.console import Console

    with Console(stderr=True).status("starting TorchServe") as line:
        yield lambda seen: line.update(_words(seen))


def _words(seen: Outlook) -> str:
    if seen.is_ready:
        return "ready"
    if not seen.listening:
        return "starting TorchServe"
    return "; ".join(f"{name}:{version}: {reason}" for (name, version), reason in seen.waiting.items())
