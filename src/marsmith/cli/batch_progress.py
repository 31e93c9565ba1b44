"""Progress of ``marsmith batch``: a bar for people, a line of JSON for each event for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from marsmith.cli.output import note
from marsmith.scoring.job import Begin, Committed, Event

_LINE_EVERY_S = 10.0


@contextmanager
def shown(*, as_json: bool) -> Iterator[Callable[[Event], None]]:
    """Yield what shows an event: on stdout as JSON, else on stderr as a bar, or as lines if it is not a terminal."""
    if as_json:
        yield _print
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield _Lines()


def _print(event: Event) -> None:
    if isinstance(event, Begin):
        facts: dict[str, Any] = {"event": "begin", "plan": event.plan.digest, "model": event.plan.settings.model}
        facts |= {"inputs": event.inputs, "done": event.done, "bad": event.bad, "workers": event.workers}
    elif isinstance(event, Committed):
        facts = {"event": "commit", "table": event.table, "new": event.is_new}
    elif event.part:
        facts = {"event": "part", "name": event.part.name, "sha256": event.part.sha256}
        facts |= {"rows": sum(event.part.statuses.values()), "bad": event.part.bad}
    elif event.died:
        facts = {"event": "died", "message": event.died}
    else:
        return
    print(json.dumps(facts), flush=True)


class _Counts:
    """What has been done until now."""

    def __init__(self) -> None:
        self.inputs = self.done = self.bad = self.began_with = 0
        self.since = time.monotonic()

    def add(self, event: Event) -> None:
        if isinstance(event, Begin):
            self.inputs, self.done, self.bad = event.inputs, event.done, event.bad
            self.began_with, self.since = event.done, time.monotonic()
            return
        if isinstance(event, Committed):
            note(f"{event.table} has the batch" + ("" if event.is_new else " already"))
            return
        self.done += event.rows
        self.bad += event.part.bad if event.part else 0
        if event.died:
            note(event.died)

    @property
    def rate(self) -> float:
        """Inputs a second in this run."""
        return (self.done - self.began_with) / max(time.monotonic() - self.since, 1e-9)

    @property
    def errors(self) -> str:
        return f"{self.bad:,} errors"


class _Lines:
    """A line now and then."""

    def __init__(self) -> None:
        self._counts = _Counts()
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        counts = self._counts
        counts.add(event)
        if isinstance(event, Begin):
            note(f"{event.inputs:,} inputs, {event.done:,} done before; {event.workers} workers")
        elif time.monotonic() - self._last > _LINE_EVERY_S:
            self._last = time.monotonic()
            left = (counts.inputs - counts.done) / counts.rate if counts.rate else 0.0
            note(f"{counts.done:,} of {counts.inputs:,}, {counts.rate:,.1f}/s, {counts.errors}, {left:,.0f} s left")


def _bar() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.1f}/s"),
        TextColumn("{task.fields[errors]}"),
        TimeRemainingColumn(),
    )
    counts = _Counts()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, rate=0.0, errors="")

        def show(event: Event) -> None:
            counts.add(event)
            progress.update(
                task, total=counts.inputs or None, completed=counts.done, rate=counts.rate, errors=counts.errors
            )

        yield show
