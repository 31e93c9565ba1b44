"""What `marsmith optimize` makes of stock archives: throughput on live servers, before and after, and the same answers.

    python benchmarks/optimize.py                                   # both models, about ten minutes on 2 cores
    python benchmarks/optimize.py --models resnet18 --quick --seconds 2 --rounds 1

For each model the archive is made by torch-model-archiver around traced TorchScript and the stock image_classifier, and
served by TorchServe with one worker: with its default, one worker a core that each take all cores, it is slower by far.
Then it is optimized, and served as `marsmith serve` does. Both servers run at once and take turns under the same load,
in another order each round; a server without requests takes next to nothing. Ratios of one run can be compared,
requests per second of two runs cannot.

ResNet-18 has weights drawn at random, fitted to the photos that are asked (see benchmarks/export.py);
EfficientNet-Lite0 its real ImageNet weights, with the stock handler's normalisation undone inside the module. The same
photos are the examples that the export is judged with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from contenders import marsmith_server, stock_archive, stock_server
from machine import machine_record
from marsmith.build.optimize.rebuild import Optimized, optimize
from marsmith.build.optimize.task import OptimizeOptions
from marsmith.export.measure import USUAL_EFFORT, Effort, Progress
from marsmith.loadtest.bench import Load, best_label, predict_each, run_load
from marsmith.loadtest.http import HttpTarget
from marsmith.project import Project
from photos import NAMES, photos, write_photos

REPOSITORY = Path(__file__).resolve().parent.parent
MODELS = ("resnet18", "efficientnet_lite0")
GOAL = 3.0
BEFORE, AFTER = "stock archive", "optimized"


def main() -> int:
    """Measure, print the tables, and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--quick", action="store_true", help="choose the form by two short turns")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = [_measured(name, args) for name in args.models]
    tables = ["\n".join(_table(one)) for one in found]
    print(*tables, sep="\n")
    if args.json:
        targets = [target for one in found for target in _targets(one)]
        result = {"machine": machine_record(), "models": found, "tables": tables, "targets": targets}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Make, optimize and measure one model."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # In a process of its own, so that this one stays without torch and its memory.
        subprocess.run([sys.executable, __file__, "make", name, str(folder)], check=True)
        old = stock_archive(folder / "model.pt", folder / "index_to_name.json", folder)
        examples = folder / "examples"
        write_photos(examples)
        options = OptimizeOptions(
            args.precision, args.engine, "2.0", output=folder / "stock-2.0.mar", examples=examples
        )
        effort = Effort(rounds=2, turn_s=0.1) if args.quick else USUAL_EFFORT
        done = optimize(Project(REPOSITORY), old, options, effort=effort, progress=Progress(step=_say))
        return _served(name, old, done, args)


def _served(name: str, old: Path, done: Optimized, args: argparse.Namespace) -> dict[str, Any]:
    bodies = photos(32)
    rates: dict[tuple[str, int], list[float]] = {}
    failed: dict[str, int] = {}
    with ExitStack() as stack:
        servers = {
            BEFORE: stack.enter_context(stock_server(old, bodies, workers=1)()),
            AFTER: stack.enter_context(marsmith_server(Project(REPOSITORY), done.path, bodies)()),
        }
        same = _same_answers(servers)
        for number in range(args.rounds):
            for count in args.clients:
                names = list(servers) if number % 2 == 0 else list(servers)[::-1]
                for server in names:
                    load = Load(clients=count, seconds=args.seconds, warm_up_s=min(2.0, args.seconds))
                    measured = run_load(servers[server], load)
                    rates.setdefault((server, count), []).append(measured.requests_per_second)
                    failed[server] = failed.get(server, 0) + measured.failed
                    _say(f"{server}, {count} clients: {measured.requests_per_second:.1f} requests/s")
    return {
        "model": name,
        "form": str(done.form),
        "photos": len(NAMES),
        "sameTop1": same,
        "failed": failed,
        "clients": {str(count): _columns(rates, count) for count in args.clients},
    }


def _columns(rates: dict[tuple[str, int], list[float]], count: int) -> dict[str, Any]:
    before, after = rates[BEFORE, count], rates[AFTER, count]
    ratios = [new / old for old, new in zip(before, after, strict=True) if old]
    ratio = statistics.median(ratios) if ratios else None
    return {"before": before, "after": after, "ratio": ratio, "goal": GOAL, "met": bool(ratio and ratio >= GOAL)}


def _same_answers(servers: dict[str, HttpTarget]) -> int:
    """Return how many of the different photos get the same best label from both servers."""
    count = len(NAMES)
    firsts = [
        replace(one, bodies=one.bodies[:count], content_types=one.content_types[:count]) for one in servers.values()
    ]
    before, after = map(predict_each, firsts)
    return sum(best_label(old.body) == best_label(new.body) for old, new in zip(before, after, strict=True))


def _table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['model']}: `{found['form']}`, same top-1 on {found['sameTop1']} of {found['photos']} photos",
        "",
        "| clients | stock archive, requests/s | optimized, requests/s | ratio | goal |",
        "|---:|---:|---:|---:|---|",
    ]
    for count, one in found["clients"].items():
        before, after = statistics.median(one["before"]), statistics.median(one["after"])
        goal = f"{one['goal']:g}: {'met' if one['met'] else 'NOT MET'}"
        lines.append(f"| {count} | {before:.1f} | {after:.1f} | {one['ratio']:.2f} | {goal} |")
    failures = {server: count for server, count in found["failed"].items() if count}
    return [*lines, *([f"failed requests: {failures}"] if failures else []), ""]


def _targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is wanted beside what is, as the page of all benchmarks takes it."""
    name, same = found["model"], found["sameTop1"] / found["photos"]
    rates = [
        {
            "what": f"{name}: optimized / stock archive, {count} clients",
            "goal": one["goal"],
            "value": one["ratio"] or 0.0,
        }
        for count, one in found["clients"].items()
    ]
    return [*rates, {"what": f"{name}: optimized, photos with the same top-1", "goal": 1.0, "value": same}]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make(name: str, folder: Path) -> None:
    """Write ``model.pt``, which fits the stock handler, and ``index_to_name.json``."""
    import warnings

    import torch

    from export import fit
    from marsmith.export.classifier import labels_of
    from marsmith.export.recipes.recipe import Recipe, imagenet_labels, load_recipe
    from stock_torchscript import for_stock_handler

    file = REPOSITORY / "export" / f"{name}.py"
    recipe = load_recipe(file)
    if not isinstance(recipe, Recipe):
        raise SystemExit(f"{file} is no image classifier")
    if recipe.bundled_weights is None:
        fit(file, folder / "weights.pth", photos(len(NAMES)))
    weights = folder / "weights.pth" if recipe.bundled_weights is None else recipe.bundled_weights()
    module = recipe.build()
    module.load_state_dict(torch.load(weights, weights_only=True))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        fitting = for_stock_handler(module, recipe.preprocessing).eval()
        torch.jit.save(torch.jit.trace(fitting, torch.zeros(2, 3, 224, 224), check_trace=False), folder / "model.pt")
    names = labels_of(imagenet_labels(), 1000)
    (folder / "index_to_name.json").write_text(json.dumps(names), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(sys.argv[2], Path(sys.argv[3]))
        sys.exit(0)
    sys.exit(main())
