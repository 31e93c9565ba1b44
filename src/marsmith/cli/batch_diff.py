"""``marsmith batch diff``: compare two finished batches, as text, JSON and a page."""

from __future__ import annotations

import argparse

from marsmith.cli.comparing import print_report, tolerance_of, write_page
from marsmith.cli.output import print_json, print_table, say
from marsmith.errors import UsageError

COLUMNS = ("DIFFERENCE", "KEY", "OLD", "NEW")


def run_diff(args: argparse.Namespace) -> int:
    """Compare the answers in two destinations; ``args.sources`` has them."""
    from marsmith.predictions.page import html_table, render_page
    from marsmith.scoring.diff import compare_batches

    if len(args.sources) != 2:
        raise UsageError("diff compares two finished batches", tip="marsmith batch diff OLD NEW")
    old, new = (each.rstrip("/") for each in args.sources)
    if old == new:
        raise UsageError(f"{old} cannot be compared with itself", tip="name two batches")
    found = compare_batches(old, new, tolerance_of(args))
    rows = [(f"{each.difference:.6g}", each.key, each.old, each.new) for each in found.largest]
    if args.html:
        more = f"<h2>Largest differences</h2>{html_table(COLUMNS, rows)}" if rows else ""
        write_page(render_page(found.report, found.model, "input", more), args.html)
    if args.json:
        print_json(found.record())
        return 0
    print_report(found.report, "input")
    if rows:
        say("")
        print_table(COLUMNS, rows)
    return 0
