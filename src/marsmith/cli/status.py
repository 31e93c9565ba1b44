"""Show where the server of this project listens and what it serves.

    marsmith status
    marsmith status --json

The exit code is 1 where no server runs. A version's workers are counted as those that are READY of all.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, print_fields, print_json, print_table
from marsmith.settings import find_project

if TYPE_CHECKING:
    from marsmith.server_status import ServerStatus


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the status."""
    from marsmith.server_status import server_status

    print_status(server_status(find_project()), as_json=args.json)


def print_status(status: ServerStatus, *, as_json: bool) -> None:
    """Print the addresses, then one line a version; `serve` prints the same when the server is ready."""
    if as_json:
        print_json(status.as_data())
        return
    print_fields({**status.addresses(), "pid": status.state.pid, "tokens": "on" if status.state.tokens else "off"})
    print()
    if not status.versions:
        print("no model is registered")
        return
    rows = [
        (
            version.model_name,
            version.model_version,
            "yes" if version.default else "",
            f"{version.ready_workers}/{max(version.min_workers, len(version.workers))}",
            version.batch_size,
            version.max_batch_delay_ms,
            version.queue_pending,
        )
        for version in status.versions
    ]
    print_table(("MODEL", "VERSION", "DEFAULT", "WORKERS", "BATCH", "DELAY_MS", "QUEUED"), rows)
