"""Check whether this machine can run a server well.

    marsmith doctor
    marsmith doctor --fix     # remove what dead servers have left: pid files, sockets, state

One line per check: ok, warn or fail, the present state, and what to do. Exits 1 if a check fails.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_json
from marsmith.project import find_project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from marsmith.server.doctor import Diagnosis


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--fix", action="store_true", help="remove what dead servers have left")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Check, fix if requested, print, and return 1 if a check fails."""
    from marsmith.server.doctor import clear, judge
    from marsmith.server.machine_facts import gather

    project = find_project()
    facts = gather(project)
    if args.fix and facts.leftovers:
        for path in clear(project):
            note(f"removed {path}")
        facts = gather(project)
    checks = judge(facts)
    failed = any(check.status == "fail" for check in checks)
    if args.json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        _print(checks)
    return int(failed)


def _print(checks: Sequence[Diagnosis]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        fix = f" -> {check.fix}" if check.fix else ""
        print(f"{check.status:<4}  {check.name:<{width}}  {check.found}{fix}")
