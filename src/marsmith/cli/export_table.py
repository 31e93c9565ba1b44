"""Table of measurements in the terminal, and progress of an export on stderr.

Progress is shown as bars in a terminal, and as lines otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from marsmith.cli.output import note, printable
from marsmith.export.lock import IMPOSSIBLE, Candidate, ExportLock
from marsmith.export.measure import Progress


def print_lock(lock: ExportLock, source: str, device: str = "cpu") -> None:
    """Print the candidates with their figures on stdout, with the chosen one marked, and the reason for the choice.

    Args:
        lock: the measurements.
        source: origin of the figures, such as ``measured now``; if they are of another machine, the limits of this one
            are shown.
        device: target device of the forms.
    """
    from rich.console import Console
    from rich.table import Table

    from marsmith.export.machine import Machine, limits_here, machine_text

    machine = Machine.here()
    is_here = machine.is_that_of(lock.machine)
    here = {} if is_here else {one.form: limits_here(one.what, device, machine) for one in lock.candidates}
    sizes = sorted(lock.eager_images_per_second, key=int)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("form", "verdict"):
        table.add_column(name, no_wrap=True)
    for name in ("max error", "top-1", "top-5", *(f"img/s at {size}" for size in sizes), "speed-up", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    eager = [f"{lock.eager_images_per_second[size]:.1f}" for size in sizes]
    table.add_row("", "eager float32 module", "", "", "", "", *eager, "1.00x", "")
    for one in lock.candidates:
        verdict = _verdict(one, here.get(one.form), is_here=is_here)
        table.add_row("*" if one.form == lock.chosen else "", one.form, verdict, *_cells(one, sizes))
    console = Console(width=None if _is_terminal() else 160, highlight=False)
    console.print(f"{source} on {machine_text(lock.machine)}", markup=False)
    if not is_here:
        console.print(f"this machine: {machine_text(machine.record())}", markup=False)
    console.print(table)
    for one in lock.candidates:
        for reason in filter(None, (one.reason, here.get(one.form))):
            console.print(f"{one.form}: {printable(reason)}", markup=False)
    console.print(f"chosen: {lock.chosen}, {lock.why}", markup=False)
    console.print(f"speed-up over batch sizes {', '.join(map(str, lock.batch_sizes))}", markup=False)


def _verdict(one: Candidate, here: str | None, *, is_here: bool) -> str:
    """Return the verdict, with the machine if it depends on one."""
    if one.verdict == IMPOSSIBLE:
        return f"{IMPOSSIBLE} {'here' if is_here else 'there'}"
    return here.partition(":")[0] if here else one.verdict


def print_changes(old: ExportLock, new: ExportLock) -> None:
    """Print the changes of a new lock on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("form", "verdict", "speed-up", "top-1", title="old -> new", box=None, title_justify="left")
    for form in dict.fromkeys(one.form for one in (*old.candidates, *new.candidates)):
        before, after = old.candidate(form), new.candidate(form)
        table.add_row(
            form,
            _change(before.verdict if before else None, after.verdict if after else None),
            _change(_speedup(before), _speedup(after)),
            _change(_top1(before), _top1(after)),
        )
    console = Console(width=None if _is_terminal() else 160, highlight=False)
    console.print(table)
    console.print(f"choice: {_change(old.chosen, new.chosen)}", markup=False)


def _change(before: str | None, after: str | None) -> str:
    return f"{before or 'not tried'}" if before == after else f"{before or 'not tried'} -> {after or 'not tried'}"


def _speedup(one: Candidate | None) -> str | None:
    return f"{one.speedup:.2f}x" if one and one.speedup else None


def _top1(one: Candidate | None) -> str | None:
    return f"{one.figures['top1_agreement']:.4f}" if one and "top1_agreement" in one.figures else None


def _cells(one: Candidate, sizes: Sequence[str]) -> list[str]:
    figures = [_number(one, "max_abs_error", ".1e"), _number(one, "top1_agreement", ".4f")]
    rates = [f"{one.images_per_second[size]:.1f}" if size in one.images_per_second else "" for size in sizes]
    megabytes = f"{one.bytes / 1e6:.1f}" if one.bytes else ""
    return [*figures, _number(one, "top5_agreement", ".4f"), *rates, _speedup(one) or "", megabytes]


def _number(one: Candidate, key: str, style: str) -> str:
    return f"{one.figures[key]:{style}}" if key in one.figures else ""


def _is_terminal() -> bool:
    import sys

    return sys.stdout.isatty()


@contextmanager
def export_progress() -> Iterator[Progress]:
    """Return callbacks that show the steps and, in a terminal, bars of candidates and rounds of timing."""
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
