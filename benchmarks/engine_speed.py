"""The engines beside each other: EfficientNet-Lite0 with its real weights, in every form but int8.

Run: python benchmarks/engine_speed.py [--threads 2] [--rounds 15] [--forms FORM ...] [--json]

Each form is loaded by marsmith_handler.engines in a process of its own, as in a worker: idle threads of one engine
would take the cores from another. They take turns, in a new order each round, at batch 1 and 8. Figures are medians, in
images per second; ratios, in brackets, are to the eager float32 module.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from skimage import data
from torchvision.transforms import v2

from marsmith.config.form import SUPPORTED, Form
from marsmith.export.image_graph import ImageGraph
from marsmith.export.recipes.recipe import Recipe, load_recipe
from marsmith.export.serialize import Files, serialize

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = REPOSITORY / "export" / "efficientnet_lite0.py"
PHOTOS = ("cat", "coffee", "rocket", "astronaut")
BATCHES = (1, 8)
EAGER = "eager float32"
WARM_UP_RUNS = 3


def main() -> int:
    """Measure and print."""
    options = _options()
    forms = [Form.parse(text) for text in options.forms] or [f for f in SUPPORTED["cpu"] if f.precision != "int8"]
    images = _images()
    with tempfile.TemporaryDirectory() as folder:
        made = _make(forms, images, Path(folder))
        results = _measure(made, images, options.threads, options.rounds)
    if options.json:
        print(json.dumps(results, indent=2))
        return 0
    print("| form | load, s | largest error | same top-1 | batch 1 | batch 8 |\n|---|---|---|---|---|---|")
    for name, one in results.items():
        rates = " | ".join(f"{one['per_second'][n]:.0f} ({one['ratio'][n]:.2f})" for n in map(str, BATCHES))
        print(f"| {name} | {one['load_s']:.2f} | {one['error']:.1e} | {one['agreement']:.2f} | {rates} |")
    return 0


def _make(forms: Sequence[Form], images: list[torch.Tensor], root: Path) -> dict[str, tuple[Form, Files] | None]:
    made: dict[str, tuple[Form, Files] | None] = {EAGER: None}
    written: dict[tuple[str, str], Files] = {}
    for form in forms:
        inside = form.precision if form.engine in ("torch", "aot_inductor") else "float32"
        key = (form.format, inside)
        if key not in written:
            folder = root / "-".join(key)
            folder.mkdir()
            print(f"writing {form.format}, {inside}", file=sys.stderr)
            written[key] = serialize(_graph(), form, images=images, folder=folder)
        made[str(form)] = (form, written[key])
    return made


def _measure(
    made: dict[str, tuple[Form, Files] | None], images: list[torch.Tensor], threads: int, rounds: int
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    workers: dict[str, tuple[Connection, Any]] = {}
    for name, form_files in made.items():
        here, there = context.Pipe()
        process = context.Process(target=_worker, args=(there, form_files, images, threads), daemon=True)
        process.start()
        workers[name] = (here, process)
    loads = {name: pipe.recv() for name, (pipe, _) in workers.items()}
    seconds: dict[str, dict[int, list[float]]] = {name: {n: [] for n in BATCHES} for name in workers}
    for _ in range(rounds):
        for name in random.sample(sorted(workers), len(workers)):
            for n in BATCHES:
                workers[name][0].send(n)
                seconds[name][n].append(workers[name][0].recv())
    for pipe, process in workers.values():
        pipe.send(None)
        process.join()
    return {name: _result(loads[name], loads[EAGER], seconds[name], seconds[EAGER]) for name in workers}


def _result(load: dict[str, Any], eager: dict[str, Any], own: dict[int, list[float]], base: Any) -> dict[str, Any]:
    got, want = torch.tensor(load["outputs"]), torch.tensor(eager["outputs"])
    rates = {str(n): n / statistics.median(own[n]) for n in BATCHES}
    return {
        "load_s": load["seconds"],
        "error": float((got - want).abs().max()),
        "agreement": float((got.argmax(1) == want.argmax(1)).double().mean()),
        "per_second": rates,
        "ratio": {n: rate / (int(n) / statistics.median(base[int(n)])) for n, rate in rates.items()},
    }


def _worker(pipe: Connection, made: tuple[Form, Files] | None, images: list[torch.Tensor], threads: int) -> None:
    sys.path.insert(0, str(REPOSITORY / "handlers"))
    from marsmith_handler import engines
    from marsmith_handler.freed_memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    started = time.perf_counter()
    if made is None:
        run: Any = _graph()
    else:
        form, files = made
        block = {"engine": form.engine, "precision": form.precision, "engine_missing": "refuse"}
        file = files.serialized_file
        run = engines.load_engine(file.parent, file.name, block, torch.device("cpu"), threads)
    batches = {n: torch.stack(images[:n]) for n in BATCHES}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = run(batches[max(BATCHES)]).tolist()
        loaded = time.perf_counter() - started
        for n in BATCHES:
            for _ in range(WARM_UP_RUNS):
                run(batches[n])
        pipe.send({"seconds": loaded, "outputs": outputs})
        while (n := pipe.recv()) is not None:
            # Between two turns others had the caches, and this engine's threads went to sleep.
            run(batches[n])
            started = time.perf_counter()
            run(batches[n])
            pipe.send(time.perf_counter() - started)


def _graph() -> ImageGraph:
    recipe = load_recipe(RECIPE)
    if not isinstance(recipe, Recipe) or recipe.bundled_weights is None:
        raise SystemExit(f"{RECIPE} is no image classifier with weights of its own")
    network = recipe.build()
    network.load_state_dict(torch.load(recipe.bundled_weights(), weights_only=True))
    return ImageGraph(network, recipe.preprocessing).eval()


def _images() -> list[torch.Tensor]:
    prepare = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(224)])
    photos = [prepare(torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)).contiguous() for name in PHOTOS]
    return [*photos, *(photo.flip(-1) for photo in photos)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--forms", nargs="*", default=[], metavar="FORM")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
