"""What does the supervisor's exporter take from the model, if Prometheus asks it every second?

Run: python benchmarks/exporter.py [--rounds 7] [--seconds 20] [--json FILE]

The default model in its locked form behind the front, JPEG over HTTP, 32 clients in a closed loop. One server stays up;
its supervisor is replaced for each turn, with `listener: none` or with one that is asked for /metrics every second,
fifteen times as often as usual. The two take turns, in a random order within each pair. Figures: the ratio of the
answers per second, median over the pairs with its interval of 95% by ranks, and the processor time of the supervisor.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import requests

import forms
import text_result
from contenders import free_ports, jpeg_inputs
from marsmith.config.properties import ENCODING, as_mapping, parse_properties, render_properties
from marsmith.loadtest import Load, run_load
from marsmith.loadtest.bench import http_target
from marsmith.loadtest.http import HttpTarget
from marsmith.project import Project
from marsmith.server import lifecycle, supervisor_state
from marsmith.server.lifecycle import StartOptions
from marsmith.server.supervisor import RestartPolicy, detach
from photos import photos
from support.live_server import free_addresses, until
from traffic_front import interval

MODEL = "efficientnet_lite0"
ON, OFF = "exporter on", "exporter off"
WARM_S = 40.0
SCRAPE_S = 1.0
Found = dict[str, list[float]]


@contextmanager
def supervised(project: Project, listener: str) -> Iterator[psutil.Process]:
    """Watch the server with a supervisor that has this listener, and yield its process."""
    project.settings_file.write_text(f"front: envoy\nlistener: {listener}\n")
    detach(project, RestartPolicy(), 240)
    known = supervisor_state.read(project)
    assert known
    process = psutil.Process(known.pid)
    try:
        yield process
    finally:
        # Only the supervisor ends; an orderly end would stop the server.
        process.kill()
        process.wait(10)


@contextmanager
def scraped(url: str) -> Iterator[None]:
    """Ask for the metrics every second meanwhile."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_S):
            requests.get(f"{url}/metrics", timeout=10).raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def turn(project: Project, target: HttpTarget, name: str, seconds: float) -> tuple[float, float]:
    """Return answers per second, and processor time of the supervisor in milliseconds a second."""
    [port] = free_ports(1)
    load = Load(clients=32, seconds=seconds, warm_up_s=2.0)
    with supervised(project, "none" if name == OFF else f"127.0.0.1:{port}") as supervisor:
        before = sum(supervisor.cpu_times()[:2])
        if name == ON:
            until(lambda: bool((known := supervisor_state.read(project)) and known.listener))
            with scraped(f"http://127.0.0.1:{port}"):
                measured = run_load(target, load)
        else:
            measured = run_load(target, load)
        used = sum(supervisor.cpu_times()[:2]) - before
    assert measured.failed == 0, measured
    return measured.requests_per_second, used * 1000 / seconds


def measure(rounds: int, seconds: float, seed: int) -> dict[str, Found]:
    """Return answers per second and processor time of each turn."""
    order = random.Random(seed)
    found: dict[str, Found] = {name: {"answers/s": [], "supervisor ms/s": []} for name in (ON, OFF)}
    with tempfile.TemporaryDirectory(prefix="marsmith-bench-") as folder:
        project = forms.scratch_project(Path(folder))
        forms.build(project, MODEL)
        project.settings_file.write_text("front: envoy\nlistener: none\n")
        config = as_mapping(parse_properties(project.server_config.read_text(encoding=ENCODING))) | free_addresses()
        project.server_config.write_text(render_properties(config), encoding=ENCODING)
        state = lifecycle.start(project, StartOptions())
        try:
            target = http_target(state, MODEL, None, jpeg_inputs(photos(8)))
            run_load(target, Load(clients=32, seconds=WARM_S, warm_up_s=0.0))
            for number in range(rounds):
                for name in order.sample([ON, OFF], 2):
                    print(f"pair {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                    answers, used = turn(project, target, name, seconds)
                    found[name]["answers/s"].append(answers)
                    found[name]["supervisor ms/s"].append(used)
        finally:
            lifecycle.stop(project)
    return found


def tables(found: dict[str, Found]) -> list[str]:
    """Return the table of the page, as Markdown."""
    lines = ["| | answers/s | supervisor, ms of processor time a second |", "|---|--:|--:|"]
    for name, figures in found.items():
        answers, used = (statistics.median(figures[key]) for key in ("answers/s", "supervisor ms/s"))
        lines.append(f"| {name} | {answers:.1f} | {used:.1f} |")
    pairs = zip(found[ON]["answers/s"], found[OFF]["answers/s"], strict=True)
    ratios = [on / off for on, off in pairs]
    low, high = interval(ratios)
    lines += ["", f"On to off: {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}), {len(ratios)} pairs."]
    return ["\n".join(lines) + "\n"]


if __name__ == "__main__":
    text_result.run(__doc__, seconds=20.0, measure=measure, tables=tables)
