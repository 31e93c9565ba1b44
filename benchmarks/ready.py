"""How long until a server is ready, and a version is, beside what no server can avoid?

Run: python benchmarks/ready.py [--rounds 5] [--archive FILE] [--json FILE]

In turns, a new order each round, medians:

- ``import torch``: a plain Python that does only that;
- ``load the file``: a plain Python that imports torch, loads the archive's file in its engine, and infers once;
- ``handler``: one of TorchServe's workers, without a frontend, until the handler is ready: proof of digests,
  environment and examples, and the warm-up of every batch size included;
- ``register``: from POST /models until the version's worker is READY, on a server that runs;
- ``serve``: from the start of TorchServe until every version has answered its own examples;
- ``first serve``: the same where no start before it has left Java a file of classes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import forms
from machine import machine_line, machine_record
from marsmith.archive.unpacked import unpacked
from marsmith.client import Client
from marsmith.runtime import Runner
from marsmith.server.scratch import scratch_server

LOAD = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {folder!r})
import json, torch
from pathlib import Path
from ruamel.yaml import YAML
from marsmith_handler import engines
folder = Path({folder!r})
block = YAML(typ="safe").load(folder / "model-config.yaml")["handler"]
torch.set_num_threads({threads})
engine = engines.load_engine(folder, {file!r}, block, torch.device("cpu"), {threads})
with torch.inference_mode():
    engine(torch.zeros(1, 3, *block["crop"], dtype=torch.uint8))
"""


def timed(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_python(code: str) -> None:
    """Run code in a Python of its own, which does not tidy up at its end: workers are killed, and do not either."""
    code += "\nimport os; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_runner(archive: Path) -> None:
    """Start a worker until the handler is ready, and end it."""
    with Runner(archive):
        pass


def registering_s(archive: Path) -> float:
    """Return how long registering takes on a server that runs, in seconds."""
    with scratch_server(forms.REAL) as server, Client.for_project(server) as client:
        (server.model_store / archive.name).write_bytes(archive.read_bytes())
        return timed(lambda: client.register(archive.name))


def serving_s(archive: Path) -> float:
    """Return how long a server takes until it is ready, in seconds."""
    start = time.perf_counter()
    with scratch_server(forms.REAL, {archive.name: archive}):
        return time.perf_counter() - start


def first_serving_s(archive: Path) -> float:
    """Return how long a server takes that finds no file of classes, nor a place for one, in seconds."""
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=os.devnull):
        return serving_s(archive)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--archive", type=Path, default=forms.REPOSITORY / "model_store" / "efficientnet_lite0-1.0.mar")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    archive: Path = args.archive
    with unpacked(archive) as content, tempfile.TemporaryDirectory():
        serialized = json.loads((content.folder / "MAR-INF/MANIFEST.json").read_text())["model"]["serializedFile"]
        load = LOAD.format(folder=str(content.folder), file=serialized, threads=2)
        works: dict[str, Callable[[], float]] = {
            "import torch": lambda: timed(lambda: run_python("import torch")),
            "load the file": lambda: timed(lambda: run_python(load)),
            "handler": lambda: timed(lambda: start_runner(archive)),
            "register": lambda: registering_s(archive),
            "serve": lambda: serving_s(archive),
            "first serve": lambda: first_serving_s(archive),
        }
        # Leaves that file, if there was none.
        serving_s(archive)
        took: dict[str, list[float]] = {name: [] for name in works}
        order = random.Random(0)
        for _ in range(args.rounds):
            for name in order.sample(list(works), len(works)):
                took[name].append(works[name]())
    machine = machine_record()
    print(machine_line(machine))
    medians = {name: statistics.median(values) for name, values in took.items()}
    for name, seconds in medians.items():
        over = seconds / medians["load the file"]
        each = ", ".join(f"{value:.2f}" for value in took[name])
        print(f"{name:<14}{seconds:7.2f} s   {over:5.2f} times loading the file   ({each})")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "seconds": medians, "rounds": took}, indent=1) + "\n")


if __name__ == "__main__":
    main()
