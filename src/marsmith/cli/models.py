"""List the registered models and versions.

    marsmith models

One line per version. The star marks the default version.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, print_json, print_table

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client

COLUMNS = ("MODEL", "VERSION", "DEFAULT", "READY", "BATCH", "DELAY", "QUEUE", "ARCHIVE")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``marsmith models``."""
    add_json_flag(parser)


def run(args: argparse.Namespace) -> None:
    """Print the versions of every model."""
    from marsmith.client.blocking_client import Client
    from marsmith.project import find_project

    with Client.for_project(find_project()) as client:
        print_versions(client, as_json=args.json)


def print_versions(client: Client, *, as_json: bool) -> None:
    """Print the versions of every model of a server."""
    from dataclasses import asdict

    versions = [status for model in client.models() for status in client.describe(model.name)]
    if as_json:
        print_json([asdict(status) for status in versions])
        return
    rows = [
        (
            status.model_name,
            status.model_version,
            "*" if status.default else "-",
            f"{status.ready_workers}/{len(status.workers)}",
            status.batch_size,
            f"{status.max_batch_delay_ms} ms",
            status.queue_pending,
            status.archive_url,
        )
        for status in versions
    ]
    print_table(COLUMNS, rows)
