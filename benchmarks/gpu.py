"""Speed on a GPU: the model alone in every form, our handler from JPEG to JSON, and both over HTTP beside stock.

    python benchmarks/gpu.py                          # ResNet-50 and ViT-Large (1.2 GB) in float16
    python benchmarks/gpu.py --device cpu --quick     # tries the benchmark itself, with small networks; no figures

It needs no network: the weights are random, which changes nothing about the time. torch, torchvision, numpy, Pillow and
scikit-image suffice; with TorchServe and Java it serves too, else it says what is missing, and gives an estimate for
the design goal from the handler's own times.

Design goal: 50 requests per second, Poisson, at a 99th percentile of at most 50 ms for the model of 1 GB, and at least
3 times the requests per second of TorchServe's stock image_classifier on the same weights, at 8 and 32 clients.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The bare machine of a GPU may not have marsmith installed: it runs from where it lies.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from gpu_models import PREPROCESSING, FormTimes, build_graph, gpu_facts, measure_forms, megabytes
from gpu_serving import (
    Served,
    Simulated,
    handler_times,
    serve_both,
    simulate,
    why_no_server,
    write_folder,
    write_mar,
    write_stock_mar,
)
from machine import machine_line, machine_record
from photos import photos

MODELS = ("resnet50", "vit_l_16")
QUICK_MODELS = ("squeezenet1_1", "resnet18")
RPS, P99_MS, TIMES_STOCK = 50.0, 50.0, 3.0
CLIENTS = (1, 8, 32)


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long.

    Attributes:
        models: names in torchvision; the last one is the large one of the design goal.
        device: where.
        precision: of every form but eager.
        batch_sizes: of the model and of the handler.
        seconds: of each measurement.
        serve: whether TorchServe is started where it can be.
    """

    models: tuple[str, ...]
    device: torch.device
    precision: str
    batch_sizes: tuple[int, ...]
    seconds: float
    serve: bool


@dataclass(frozen=True)
class Result:
    """What one model did; ``served`` is empty, with the reason in ``not_served``, where no server could run."""

    model: str
    megabytes: float
    forms: list[FormTimes]
    handler_ms: dict[int, float]
    simulated: Simulated
    served: list[Served]
    not_served: str


def measure(plan: Plan, model: str) -> Result:
    """Measure one model."""
    bodies = photos(8)
    with tempfile.TemporaryDirectory(prefix="marsmith-gpu-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        say(f"{model}: building")
        graph = build_graph(model, plan.device)
        say(f"{model}: the model alone")
        forms = measure_forms(graph, plan.precision, plan.device, plan.batch_sizes, folder, plan.seconds)
        write_folder(folder, model, max(plan.batch_sizes), PREPROCESSING.crop, PREPROCESSING.resize)
        say(f"{model}: the handler")
        times = handler_times(folder, plan.device, bodies, plan.batch_sizes, plan.seconds)
        reason = why_no_server() if plan.serve else "not asked for (--no-server)"
        served = [] if reason else _serve(plan, model, graph, folder, bodies)
        simulated = simulate(times, rps=RPS, p99_ms=P99_MS)
        return Result(model, megabytes(graph), forms, times, simulated, served, reason)


def _serve(plan: Plan, model: str, graph: Any, folder: Path, bodies: Sequence[bytes]) -> list[Served]:
    say(f"{model}: archives")
    ours = write_mar(folder, model, folder.parent / f"{model}-1.0.mar")
    stock = write_stock_mar(graph.classifier, plan.device, PREPROCESSING.crop, folder.parent / "stock")
    graph.to("cpu")
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    say(f"{model}: over HTTP")
    return serve_both(ours, stock, bodies, clients=CLIENTS, rps=RPS, seconds=plan.seconds)


def form_table(result: Result) -> list[str]:
    """Return how long batches take in each form, as lines of a table in Markdown."""
    sizes = sorted(result.handler_ms)
    lines = ["| form | " + " | ".join(f"batch {size}, ms" for size in sizes) + " | images/s | difference |"]
    lines.append("|---|" + "---:|" * (len(sizes) + 2))
    for form in result.forms:
        if form.refused:
            lines.append(f"| {form.form} | refused: {form.refused} |" + " |" * (len(sizes) + 1))
            continue
        lines.append(_row(form.form, form.ms, f"{form.difference:.1e}"))
    return [*lines, _row("handler, JPEG to JSON", result.handler_ms, "")]


def _row(name: str, ms: dict[int, float], last: str) -> str:
    rate = max(1000 * size / value for size, value in ms.items())
    cells = [f"{ms[size]:.2f}" for size in sorted(ms)]
    return f"| {name} | " + " | ".join([*cells, f"{rate:.0f}", last]) + " |"


def served_table(served: Sequence[Served]) -> list[str]:
    """Return what the servers did, as lines of a table in Markdown."""
    heads = [f"c={count} req/s (p99 ms)" for count in CLIENTS]
    lines = [f"| server | {' | '.join(heads)} | p99 ms at {RPS:g}/s |", "|---|" + "---:|" * (len(heads) + 1)]
    for each in served:
        cells = [f"{m.requests_per_second:.0f} ({m.p99_ms:.0f})" for m in each.closed.values()]
        lines.append(f"| {each.name} | {' | '.join(cells)} | {each.at_rate.p99_ms:.0f} |")
    return lines


def goals(result: Result, *, is_large: bool) -> list[str]:
    """Say which goals are met; those that were not measured are said to be so."""
    lines = []
    if not result.served:
        lines.append(f"not measured over HTTP: {result.not_served}")
        estimate = result.simulated
        lines.append(
            f"estimate from the handler's times: p99 {estimate.p99_ms:.0f} ms at {estimate.rps:g} requests/s, "
            f"and up to {estimate.largest_rps:.0f} requests/s within {P99_MS:g} ms"
        )
        return lines
    ours, stock = result.served
    for count in CLIENTS[1:]:
        own, other = ours.closed[count], stock.closed[count]
        if own.failed or other.failed or not other.requests_per_second:
            lines.append(f"{count} clients: no ratio, since not every request was answered in time")
            continue
        ratio = own.requests_per_second / other.requests_per_second
        lines.append(f"{count} clients: {ratio:.1f} times stock; goal {TIMES_STOCK:g}: {_met(ratio >= TIMES_STOCK)}")
    if is_large:
        p99 = ours.at_rate.p99_ms
        text = f"{RPS:g} requests/s: p99 {p99:.0f} ms; goal {P99_MS:g} ms"
        lines.append(f"{text}: {_met(ours.at_rate.holds(P99_MS))}")
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "NOT MET"


def record(result: Result) -> dict[str, Any]:
    """Return a result as JSON."""
    served = [
        {
            "name": each.name,
            "clients": {str(count): m.record() for count, m in each.closed.items()},
            "atRate": each.at_rate.record(),
        }
        for each in result.served
    ]
    plain = {key: value for key, value in vars(result).items() if key not in ("served", "forms", "simulated")}
    return plain | {"forms": list(map(asdict, result.forms)), "simulated": asdict(result.simulated), "served": served}


def say(text: str) -> None:
    """Tell what happens."""
    print(text, file=sys.stderr, flush=True)


def plan_of(args: argparse.Namespace) -> Plan:
    """Return what was asked for.

    Raises:
        SystemExit: 1: there is no GPU, and none was ruled out.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        say(
            f"torch {torch.__version__} sees no CUDA device: figures of a GPU need one. "
            "--device cpu --quick tries the benchmark itself, without figures that mean anything."
        )
        raise SystemExit(1)
    models = tuple(args.models.split(",")) if args.models else QUICK_MODELS if args.quick else MODELS
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    precision = "float16" if args.device == "cuda" else "float32"
    sizes = (1, 4) if args.quick else (1, 4, 8, 16, 32)
    seconds = args.seconds or (0.5 if args.quick else 5.0)
    return Plan(models, device, precision, sizes, seconds, not args.no_server)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, short measurements")
    parser.add_argument("--models", help=f"names in torchvision, with commas (default: {','.join(MODELS)})")
    parser.add_argument("--seconds", type=float, help="of each measurement (default: 5)")
    parser.add_argument("--no-server", action="store_true", help="leave TorchServe out")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    plan = plan_of(args)
    machine, gpu = machine_record(), gpu_facts(plan.device)
    print(machine_line(machine), json.dumps(gpu), sep="\n")
    results = []
    for model in plan.models:
        result = measure(plan, model)
        results.append(result)
        print(f"\n{model}, {result.megabytes:.0f} MB of float32 weights\n", *form_table(result), "", sep="\n")
        if result.served:
            print(*served_table(result.served), "", sep="\n")
        print(*goals(result, is_large=model == plan.models[-1]), sep="\n")
    if args.json:
        figures = {"machine": machine, "gpu": gpu, "models": [record(each) for each in results]}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
