"""Where does a request's time go, at one client and at many: in the model, in TorchServe, or nowhere at all?

Run: python benchmarks/stages.py [--rounds 3] [--seconds 5] [--json FILE]

The default model in its locked form, JPEG over HTTP, a closed loop of 1, 8 and 32 clients, each with the set-up that
was best for so many in peers.py. For each: the mean time of a request split into its stages (as `marsmith bench
--breakdown` does), how much of the cores the server and the driver kept busy, and what decoding and the model reach in
process with the same set-up, which no server around the same code can exceed. Rounds take turns; medians.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import forms
import text_result
from contenders import jpeg_inputs
from in_process import images_per_second
from marsmith import run_state
from marsmith.archive import Archive
from marsmith.loadtest.bench import Load, http_target, run_load
from marsmith.loadtest.breakdown import watch_stages
from marsmith.loadtest.tune.setup import Placement, Setup
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.project import Project
from marsmith.server.scratch import scratch_server
from photos import photos
from processor_time import with_processor_time

# By the number of clients: workers, threads, batch size and delay.
SETUPS = {
    1: Setup(Placement(0, 1, 2), 1, 1),
    8: Setup(Placement(0, 1, 2), 4, 1),
    32: Setup(Placement(0, 2, 1), 8, 5),
}
STAGES = ("network", "frontend", "queue", "decode", "infer", "encode")
WARM_S = 10.0
Figures = dict[str, float]


def measure_one(project: Project, archive: Path, clients: int, bodies: list[bytes], seconds: float) -> Figures:
    """Measure one set-up on a server of its own: answers per second, milliseconds a request, cores that were busy."""
    setup = SETUPS[clients]
    load = Load(clients=clients, seconds=seconds, warm_up_s=0.0)
    model = Archive.open(archive).manifest.model_name
    with tempfile.TemporaryDirectory() as folder:
        path = VariantMaker(archive, Path(folder)).write(setup, Path(folder) / f"{setup.version}.mar")
        with scratch_server(project, {path.name: path}) as server:
            state = run_state.read(server)
            target = http_target(state, model, None, jpeg_inputs(bodies))
            run_load(target, Load(clients=max(clients, 8), seconds=WARM_S, warm_up_s=0.0))
            with watch_stages(state, model, None) as split:
                begun = time.perf_counter()
                measured, spent = with_processor_time(lambda: run_load(target, load))
                took = time.perf_counter() - begun
                stages = split(measured).record()["stagesMs"]
    in_process = images_per_second(
        archive,
        bodies,
        workers=setup.placement.workers,
        threads=setup.placement.threads,
        batch_size=setup.batch_size,
        seconds=seconds,
    )
    return {
        "answers/s": measured.requests_per_second,
        "mean": measured.mean_ms,
        **{stage: float(stages[stage]) for stage in STAGES},
        "cores busy": sum(spent.values()) / took,
        "in process": in_process,
    }


def measure(rounds: int, seconds: float, seed: int) -> dict[int, Figures]:
    """Return the medians by the number of clients."""
    order, bodies = random.Random(seed), photos(8)
    found: dict[int, list[Figures]] = {clients: [] for clients in SETUPS}
    with tempfile.TemporaryDirectory(prefix="marsmith-bench-") as folder:
        project = forms.scratch_project(Path(folder))
        archive = forms.build(project, "efficientnet_lite0")
        for number in range(rounds):
            for clients in order.sample(list(SETUPS), len(SETUPS)):
                print(f"round {number + 1} of {rounds}: {clients} clients", file=sys.stderr, flush=True)
                found[clients].append(measure_one(project, archive, clients, bodies, seconds))
    return {
        clients: {name: statistics.median(one[name] for one in measured) for name in measured[0]}
        for clients, measured in found.items()
    }


def tables(found: dict[int, Figures], cores: int) -> list[str]:
    """Return the table of the page as Markdown, and what it says."""
    head = ["clients, set-up", "answers/s", "mean ms", *STAGES, f"cores busy, of {cores}", "in process, images/s"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    said = []
    for clients, figures in found.items():
        times = " | ".join(f"{figures[name]:.1f}" for name in ("mean", *STAGES))
        lines.append(
            f"| {clients}, {SETUPS[clients]} | {figures['answers/s']:.0f} | {times} | {figures['cores busy']:.2f}"
            f" | {figures['in process']:.0f} |"
        )
        around = figures["network"] + figures["frontend"]
        share = figures["answers/s"] / figures["in process"]
        idle = cores - figures["cores busy"]
        said.append(
            f"- {clients} client{'' if clients == 1 else 's'}: {share:.2f} of what decode and model reach in process."
            f" Of {figures['mean']:.1f} ms TorchServe's frontend and HTTP take {around:.1f}, waiting in the queue"
            f" {figures['queue']:.1f}; {idle:.2f} of the {cores} cores have nothing to do meanwhile."
        )
    intro = "Mean milliseconds of a request in each stage; times of a batch count in full for each of its requests."
    return [f"{intro}\n", "\n".join(lines) + "\n", "\n".join(said) + "\n"]


if __name__ == "__main__":
    text_result.run(__doc__, seconds=5.0, measure=measure, tables=lambda found: tables(found, os.cpu_count() or 1))
