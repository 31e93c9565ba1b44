"""What does TorchServe's frontend take from the model, and what do three settings of ours change about it?

Run: python benchmarks/frontend.py [--rounds 3] [--seconds 10] [--json FILE]

The default model in its locked form, as many workers as cores, one thread each, JPEG over HTTP, 32 clients in a closed
loop; servers take turns, in a new order each round:

- ``as shipped``: config.properties as it is: the JVM compiles with its first compiler only, metric lines are gathered;
- ``second compiler``: without ``-XX:TieredStopAtLevel=1``, as TorchServe comes;
- ``lines at once``: each metric line leaves the worker by itself, as TorchServe's own handlers do it;
- ``log thread looks``: without ``log4j2.asyncLoggerTimeout``, so that it wakes a hundred times a second.

Each new server is measured idle, over its first seconds under load and again after 40 s of load. Figures are medians:
answers per second, and the processor time of the frontend and of all workers, in milliseconds a request; idle, of the
frontend in milliseconds a second.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import forms
import text_result
from contenders import marsmith_server
from marsmith.loadtest import Load, run_load
from marsmith.loadtest.http import HttpTarget
from marsmith.loadtest.tune.setup import Placement, Setup
from photos import photos
from processor_time import with_processor_time

SHIPPED, SECOND, AT_ONCE, LOOKS = "as shipped", "second compiler", "lines at once", "log thread looks"
# What a server's vmargs lack.
WITHOUT = {SECOND: "-XX:TieredStopAtLevel=1", LOOKS: "-Dlog4j2.asyncLoggerTimeout=1000"}
VARIABLE = "MARSMITH_METRIC_LINES_S"
WARM_S = 30.0
IDLE_S = 20.0
IDLE = "idle"
SPANS = (IDLE, "first seconds", "after 40 s")
Figures = dict[str, list[float]]


def span(target: HttpTarget, seconds: float) -> dict[str, float]:
    """Measure one span of load: answers per second, milliseconds a request, 99th percentile in milliseconds."""
    load = Load(clients=32, seconds=seconds, warm_up_s=0.0)
    measured, used = with_processor_time(lambda: run_load(target, load))
    spent = {f"{part} ms": used[part] * 1000 / measured.requests for part in ("frontend", "workers")}
    return {"answers/s": measured.requests_per_second, "p99 ms": measured.p99_ms, **spent}


def idle() -> dict[str, float]:
    """Measure the frontend while nobody asks, in milliseconds of processor time a second."""
    _, used = with_processor_time(lambda: time.sleep(IDLE_S))
    return {"frontend ms": used["frontend"] * 1000 / IDLE_S}


@contextmanager
def environment(lines_s: str) -> Iterator[None]:
    """Set how long workers gather metric lines, for servers that are started meanwhile."""
    os.environ[VARIABLE] = lines_s
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def measure(rounds: int, seconds: float, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return the medians by server and span."""
    order = random.Random(seed)
    cores = os.cpu_count() or 1
    bodies = photos(8)
    found: dict[str, dict[str, Figures]] = {name: {when: {} for when in SPANS} for name in (SHIPPED, *WITHOUT, AT_ONCE)}
    with tempfile.TemporaryDirectory(prefix="marsmith-bench-") as folder:
        project = forms.scratch_project(Path(folder))
        archive = forms.build(project, "efficientnet_lite0")
        shipped = project.server_config.read_text(encoding="utf-8")
        serve = marsmith_server(project, archive, bodies, Setup(Placement(0, cores, 1), 8, 1))
        for number in range(rounds):
            for name in order.sample(list(found), len(found)):
                print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                project.server_config.write_text(shipped.replace(WITHOUT[name], "") if name in WITHOUT else shipped)
                with environment("0" if name == AT_ONCE else "0.2"), serve() as target:
                    _add(found[name][IDLE], idle())
                    _add(found[name][SPANS[1]], span(target, seconds))
                    run_load(target, Load(clients=32, seconds=WARM_S, warm_up_s=0.0))
                    _add(found[name][SPANS[2]], span(target, seconds))
    return {
        name: {
            when: {key: statistics.median(values) for key, values in figures.items()} for when, figures in of.items()
        }
        for name, of in found.items()
    }


def _add(figures: Figures, one: dict[str, float]) -> None:
    for key, value in one.items():
        figures.setdefault(key, []).append(value)


def tables(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Return the table of the page, as Markdown."""
    columns = {"answers/s": 1, "p99 ms": 0, "frontend ms": 2, "workers ms": 2}
    lines = [f"| server | | {' | '.join(columns)} |", "|---|---|--:|--:|--:|--:|"]
    for name, spans in found.items():
        for when, figures in spans.items():
            cells = (f"{figures[key]:.{digits}f}" if key in figures else "" for key, digits in columns.items())
            lines.append(f"| {name} | {when} | {' | '.join(cells)} |")
    load = "The default model, 32 clients; processor time in milliseconds a request,"
    idle_too = "of the JVM and of all workers together; idle: of the JVM, in milliseconds a second."
    return [f"{load} {idle_too}\n", "\n".join(lines) + "\n"]


if __name__ == "__main__":
    text_result.run(__doc__, seconds=10.0, measure=measure, tables=tables)
