"""Stop the server of this project, with every worker and its supervisor.

    marsmith stop

The frontend unregisters its models and ends; what has not ended after --timeout seconds is ended by force, with 0 at
once. What was served is remembered for the next `marsmith serve`. Where no server runs, nothing happens, and that is
said. Only the processes count: it works with a damaged config, damaged archives and a damaged run state as well.
"""

from __future__ import annotations

import argparse

from marsmith.cli.output import note
from marsmith.project import find_running_project


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="time to end by itself (%(default)g)"
    )


def run(args: argparse.Namespace) -> None:
    """Stop the server."""
    from marsmith.server import lifecycle

    project = find_running_project()
    stopped = lifecycle.stop(project, timeout_s=args.timeout)
    note(f"stopped the server of {project.root}" if stopped else f"no server runs for {project.root}")
