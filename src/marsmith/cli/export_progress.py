"""How far an export is, on stderr: bars where somebody watches, lines where not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from marsmith.cli.output import note
from marsmith.export.measure import Progress


@contextmanager
def export_progress() -> Iterator[Progress]:
    """Give callbacks that show the steps and, in a terminal, bars of candidates and rounds of timing."""
    if not sys.stderr.isatty():
        yield Progress(step=note)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True, highlight=False), transient=True) as bars:
        forms = bars.add_task("candidates", total=None, visible=False)
        timing = bars.add_task("timing", total=None, visible=False)
        yield Progress(
            step=lambda text: bars.console.print(text, markup=False),
            candidates=lambda done, total, name: bars.update(
                forms, completed=done, total=total, visible=done < total, description=name or "candidates"
            ),
            rounds=lambda done, total: bars.update(timing, completed=done, total=total, visible=done < total),
        )
