"""Stop the server of this project, with all its workers and its supervisor.

    marsmith stop
    marsmith stop --delay 10      # /ready says no, and requests are answered for 10 s more
    marsmith stop --state DIR     # a host: `marsmith host` prints its folder

The frontend unregisters its models and ends. Processes that have not ended after --timeout seconds are killed, with 0
at once. The served versions are saved for the next `marsmith serve`. If no server runs, a message says so. It also
works with a damaged config, damaged archives and a damaged run state. A host answers what it has taken, and ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from marsmith.cli.output import note
from marsmith.errors import UsageError
from marsmith.project import find_running_project


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time for the server to end by itself (%(default)g)",
    )
    parser.add_argument(
        "--delay",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="answer requests for so long, while /ready tells load balancers to send no more (%(default)g)",
    )
    parser.add_argument("--state", metavar="DIR", type=Path, help="stop the host with its state in this folder")


def run(args: argparse.Namespace) -> None:
    """Stop the server."""
    if not 0 <= args.delay <= 3600:
        raise UsageError(f"--delay {args.delay:g} is not from 0 to 3600 seconds")
    if args.state is not None:
        _stop_host(args)
        return
    from marsmith.server import lifecycle

    project = find_running_project()
    stopped = lifecycle.stop(project, timeout_s=args.timeout, delay_s=args.delay)
    note(f"stopped the server of {project.root}" if stopped else f"no server runs for {project.root}")


def _stop_host(args: argparse.Namespace) -> None:
    from marsmith.host import state

    if args.delay:
        raise UsageError("--delay is about the project's own server: leave out --state")
    stopped = state.stop(args.state, args.timeout)
    note(f"stopped the host of {args.state}" if stopped else f"no host runs with the state in {args.state}")
