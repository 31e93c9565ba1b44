"""What verbs that compare replies have in common: the flags of the tolerance, the table, the page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import note, print_fields, print_table, say
from marsmith.errors import UsageError

if TYPE_CHECKING:
    from marsmith.predictions import Report, Tolerance

_FLAGS = (
    ("probability", 0.1, "of the most probable class"),
    ("absolute", 1e-3, "of any other number"),
    ("relative", 1e-2, "of any other number, as a share of the larger one"),
)


def add_tolerance_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the largest difference at which two replies agree, and of the page."""
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as a page with plots")
    for name, default, what in _FLAGS:
        text = f"largest difference {what} (%(default)g)"
        parser.add_argument(f"--{name}", type=float, default=default, metavar="D", help=text)


def tolerance_of(args: argparse.Namespace) -> Tolerance:
    """Return the largest difference at which two replies agree."""
    from marsmith.predictions import Tolerance

    return Tolerance(args.probability, args.absolute, args.relative)


def write_page(page: str, path: Path) -> None:
    """Write a page; raises UsageError if that fails."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    note(f"{path} has the plots")


def print_report(report: Report, what: str = "request") -> None:
    """Print a comparison as text.

    Args:
        report: the comparison.
        what: ``request``, or ``input`` of a batch.
    """
    from marsmith.predictions.report import FLIP_COLUMNS, fields, flip_rows

    print_fields(fields(report, what))
    if report.flips:
        say("")
        print_table(FLIP_COLUMNS, flip_rows(report))
