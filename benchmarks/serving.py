"""How much of what decoding and the model reach does the server pass on? And how much more than a stock TorchServe?

Run: python benchmarks/serving.py [--rounds 3] [--seconds 5] [--model efficientnet_lite0|resnet18] [--json FILE]

For the default model in the form that its lock names, and for ResNet-18 in int8, whose weights are drawn at random and
fitted to a few photos as benchmarks/export.py does it (torchvision's hub is not reached from everywhere):

- ``limit``: decoding and model in process, no server, the better of one process with all threads and one for each core;
- ``marsmith``: the archive on TorchServe, each of these set-ups, JPEG over HTTP, closed loops of 1, 8 and 32 clients;
- ``marsmith, float32``: the same model in TorchScript float32, run by torch;
- ``stock``: torch-model-archiver, image_classifier, TorchServe's defaults (one worker a core, each with all cores), and
  with one worker, which is what helps it most; the same weights;
- gRPC beside HTTP at 8 clients.

Servers and limits take turns, in a new order each round; figures are medians over the rounds, ratios are of medians.
Beside them stands what a request takes of the processor: in the workers, in the frontend, and in the driver, which is
this process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forms
from contenders import Contender, jpeg_inputs, marsmith_server, stock_archive, stock_server
from in_process import images_per_second
from machine import machine_line, machine_record
from marsmith import run_state
from marsmith.archive import Archive
from marsmith.loadtest import Measurement
from marsmith.loadtest.bench import Load, Target, grpc_target, http_target, run_load
from marsmith.loadtest.http import HttpTarget
from marsmith.loadtest.tune.setup import Placement, Setup
from marsmith.server.scratch import scratch_server
from photos import photos
from processor_time import with_processor_time
from stock_torchscript import write_stock_torchscript
from subjects import SUBJECTS, fast_archive, weights_of

Costs = dict[str, float]
CLIENTS = (1, 8, 32)
# Of full load before anything counts: so long the JVM still compiles what it runs most.
WARM_S = 8.0
# Workers x threads of each.
SHARES = ((1, 2), (2, 1))
SETUPS = tuple(Setup(Placement(0, workers, threads), 8, 1) for workers, threads in SHARES)
TARGETS = {
    "limit": "at 32 clients / limit in process",
    "stock": "auto / stock defaults at 32 clients",
    "stock float32": "float32 / stock defaults at 32 clients",
}
GOALS = {"limit": 0.93, "stock": 5.0, "stock float32": 1.5}


@dataclass
class Column:
    """Runs of one contender at one number of clients."""

    rates: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    failed: int = 0
    spent: list[Costs] = field(default_factory=list)

    def add(self, measured: Measurement, spent: Costs) -> None:
        """Keep one run, and what a request took of the processor."""
        self.spent.append(spent)
        self.rates.append(measured.requests_per_second)
        self.p50s.append(measured.quantiles_ms[0.5])
        self.p99s.append(measured.p99_ms)
        self.failed += measured.failed

    @property
    def rate(self) -> float:
        """Median answers per second."""
        return statistics.median(self.rates) if self.rates else float("nan")


def costed(target: HttpTarget, load: Load) -> tuple[Measurement, Costs]:
    """Apply a load; return what it gave, and processor time a request by part, in milliseconds."""
    measured, used = with_processor_time(lambda: run_load(target, load))
    return measured, {part: seconds * 1000 / max(1, measured.requests) for part, seconds in used.items()}


def contenders(model: str, folder: Path, bodies: Sequence[bytes]) -> dict[str, Any]:
    """Build every archive; return the contenders and the path of the fast archive."""
    project = forms.scratch_project(folder)
    weights = weights_of(model, folder)
    auto = fast_archive(project, model, weights)
    chosen = weights if weights != "recipe" else None
    plain = forms.build(project, model, weights=chosen, precision="float32", engine="torch", format="torchscript")
    stock = folder / "stock"
    stock.mkdir()
    write_stock_torchscript(model, weights, stock / "stock.pt")
    (stock / "index_to_name.json").write_text(Archive.open(auto).text("index_to_name.json") or "{}")
    archive = stock_archive(stock / "stock.pt", stock / "index_to_name.json", stock)
    made = [Contender(f"marsmith, {setup}", marsmith_server(project, auto, bodies, setup)) for setup in SETUPS]
    made += [Contender(f"float32, {setup}", marsmith_server(project, plain, bodies, setup)) for setup in SETUPS]
    made += [
        Contender("stock, its defaults", stock_server(archive, bodies)),
        Contender("stock, 1 worker", stock_server(archive, bodies, workers=1)),
    ]
    return {"contenders": made, "archive": auto, "project": project}


def take_turns(
    made: Sequence[Contender], limit: Callable[[int, int], float], rounds: int, seconds: float, order: random.Random
) -> tuple[dict[str, dict[int, Column]], dict[str, float]]:
    """Measure every contender at every number of clients, and the limits, in a new order each round.

    Args:
        made: the servers.
        limit: gives decoded and classified images per second, in process, of so many workers and threads of each.
        rounds: of turns.
        seconds: of each measurement.
        order: draws the order.

    Returns:
        Columns by contender and number of clients, and medians of the limits by how the cores are shared out.
    """
    columns = {each.name: {clients: Column() for clients in CLIENTS} for each in made}
    limits: dict[tuple[int, int], list[float]] = {shape: [] for shape in SHARES}
    turns: list[Contender | tuple[int, int]] = [*made, *SHARES]
    for number in range(rounds):
        for each in order.sample(turns, len(turns)):
            name = each.name if isinstance(each, Contender) else f"limit, {_shape(*each)}"
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            if not isinstance(each, Contender):
                limits[each].append(limit(*each))
                continue
            with each.serve() as target:
                run_load(target, Load(clients=32, seconds=WARM_S, warm_up_s=0.0))
                for clients in CLIENTS:
                    load = Load(clients=clients, seconds=seconds, warm_up_s=0.0)
                    columns[each.name][clients].add(*costed(target, load))
    return columns, {_shape(*shape): statistics.median(rates) for shape, rates in limits.items()}


def _shape(workers: int, threads: int) -> str:
    return f"{workers} x {threads} threads"


def over_grpc(project: Any, archive: Path, bodies: Sequence[bytes], rounds: int, seconds: float) -> dict[str, float]:
    """Measure HTTP and gRPC in turns on one server, 8 clients; answers per second."""
    rates: dict[str, list[float]] = {"http": [], "grpc": []}
    with scratch_server(project, {archive.name: archive}) as server:
        state, model = run_state.read(server), Archive.open(archive).manifest.model_name
        inputs = jpeg_inputs(bodies)
        targets: dict[str, Target] = {
            "http": http_target(state, model, None, inputs),
            "grpc": grpc_target(state, model, None, inputs),
        }
        for _ in range(rounds):
            for name, target in targets.items():
                load = Load(clients=8, seconds=seconds, warm_up_s=1.0)
                rates[name].append(run_load(target, load).requests_per_second)
    return {name: statistics.median(values) for name, values in rates.items()}


def measure(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one model in every way."""
    bodies = photos(8)
    order = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="marsmith-bench-") as folder:
        made = contenders(model, Path(folder), bodies)

        def in_process(workers: int, threads: int) -> float:
            return images_per_second(made["archive"], bodies, workers=workers, threads=threads, seconds=args.seconds)

        columns, limit = take_turns(made["contenders"], in_process, args.rounds, args.seconds, order)
        grpc = over_grpc(made["project"], made["archive"], bodies, args.rounds, args.seconds)
    ratios = _ratios(columns, max(limit.values()))
    servers = {name: {str(c): _record(column) for c, column in row.items()} for name, row in columns.items()}
    return {"model": model, "limit": limit, "servers": servers, "grpc": grpc, "ratios": ratios}


def _ratios(columns: dict[str, dict[int, Column]], limit: float) -> dict[str, float]:
    def best(prefix: str, clients: int) -> float:
        return max(row[clients].rate for name, row in columns.items() if name.startswith(prefix))

    stock = columns["stock, its defaults"]
    return {
        "limit": best("marsmith", 32) / limit,
        "stock": best("marsmith", 32) / stock[32].rate,
        "stock float32": best("float32", 32) / stock[32].rate,
        "stock, 1 worker": best("marsmith", 32) / columns["stock, 1 worker"][32].rate,
        "stock float32, 1 worker": best("float32", 32) / columns["stock, 1 worker"][32].rate,
        "one client": best("marsmith", 1) / max(stock[1].rate, columns["stock, 1 worker"][1].rate),
    }


def _record(column: Column) -> dict[str, Any]:
    return {
        "rps": round(column.rate, 1),
        "rpsOfRounds": [round(rate, 1) for rate in column.rates],
        "p50Ms": round(statistics.median(column.p50s), 2),
        "p99Ms": round(statistics.median(column.p99s), 2),
        "failed": column.failed,
        "spentMs": {part: round(statistics.median(one[part] for one in column.spent), 2) for part in column.spent[0]},
    }


def show(result: dict[str, Any]) -> None:
    """Print one model's tables."""
    print(f"\n{result['model']}")
    print(f"{'server':<48}" + "".join(f"{f'{c} clients':>12}{'p99 ms':>9}" for c in CLIENTS))
    for name, row in result["servers"].items():
        cells = "".join(f"{row[str(c)]['rps']:>12.1f}{row[str(c)]['p99Ms']:>9.1f}" for c in CLIENTS)
        print(f"{name:<48}{cells}")
    for name, rate in result["limit"].items():
        print(f"{'limit, ' + name:<48}{'':>42}{rate:>12.1f}")
    print(f"8 clients: HTTP {result['grpc']['http']:.1f}, gRPC {result['grpc']['grpc']:.1f} answers/s")
    for name, ratio in result["ratios"].items():
        goal = f", target {GOALS[name]:g}: {'met' if ratio >= GOALS[name] else 'NOT met'}" if name in GOALS else ""
        print(f"{TARGETS.get(name, name):<48}{ratio:>8.2f}{goal}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=sorted(SUBJECTS), help="one of them; both by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    machine = machine_record()
    print(machine_line(machine))
    results = [measure(model, args) for model in args.model or SUBJECTS]
    for result in results:
        show(result)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
