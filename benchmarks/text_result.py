"""The command line of a benchmark whose result is text for the page: measure, print, and write it with the machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from machine import machine_line, machine_record

Found = TypeVar("Found")


def run(
    doc: str | None,
    *,
    seconds: float,
    measure: Callable[[int, float, int], Found],
    tables: Callable[[Found], list[str]],
) -> None:
    """Be the command.

    Args:
        doc: what ``--help`` says.
        seconds: of each measurement, unless said otherwise.
        measure: takes rounds, seconds and the seed of their order; what it finds can be written as JSON.
        tables: renders what was found as Markdown.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    machine = machine_record()
    print(machine_line(machine))
    found = measure(args.rounds, args.seconds, args.seed)
    shown = tables(found)
    print("\n".join(shown))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "found": found, "tables": shown}, indent=1) + "\n")
