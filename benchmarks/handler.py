"""The image classifier handler without a server: against its own parts, and against TorchServe's stock handler.

Run: python benchmarks/handler.py [--batch-size 8] [--threads 2] [--rounds 40] [--json]

On one batch of JPEG photos of 640x480, each handler in a process of its own as in TorchServe, all taking turns in a new
order each round:

- ``whole``: ``handle`` of the handler that the archive carries, from bytes to JSON;
- ``decode`` and ``model``: its decoding of the batch, and its model on the stacked batch, each called alone;
- ``whole, fresh``: the same without marsmith_handler/freed_memory.py;
- ``stock``: ``handle`` of TorchServe's own image_classifier on the same float32 weights, traced as people trace them
  (normalised floats in, logits out, not frozen), with the model's own normalisation and interpolation, so that the
  answers agree;
- ``stock decode`` and ``stock model``: its preprocess and its model, each called alone.

Neither writes metrics here. Figures are medians, in milliseconds a batch, with the quartiles; ratios are of medians.
The archive comes from ``marsmith archive efficientnet_lite0``.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from ruamel.yaml import YAML
from skimage import data
from torchvision import transforms

from marsmith.archive.unpacked import unpacked
from marsmith.export.recipes.recipe import load_image_recipe
from marsmith.export.recipes.weights import apply_weights, load_weights
from marsmith.runtime.fake_context import FakeContext

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHIVE = REPOSITORY / "model_store" / "efficientnet_lite0-1.0.mar"
RECIPE = REPOSITORY / "export" / "efficientnet_lite0.py"
PHOTOS = ("astronaut", "cat", "chelsea", "coffee", "rocket", "immunohistochemistry", "hubble_deep_field", "retina")
LIMIT_TARGET, STOCK_TARGET = 0.95, 3.0
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
Work = Callable[[], object]
Parts = Callable[[Path, int, int], dict[str, Work]]


@dataclass(frozen=True)
class Time:
    """What one contestant took, in milliseconds a batch: median and quartiles."""

    median_ms: float
    lower_ms: float
    upper_ms: float


class NoMetrics:
    """Takes the metrics that the stock handler writes, and drops them."""

    def add_time(self, *_: Any, **__: Any) -> None:
        """Drop one."""


def photos(count: int) -> list[bytes]:
    """Return JPEG photos of 640x480."""
    bodies = []
    for number in range(count):
        stream = io.BytesIO()
        image = Image.fromarray(getattr(data, PHOTOS[number % len(PHOTOS)])()).convert("RGB")
        image.resize((640, 480)).save(stream, "JPEG", quality=90)
        bodies.append(stream.getvalue())
    return bodies


def our_handler(folder: Path, batch_size: int, threads: int) -> tuple[Any, FakeContext]:
    """Load the handler from an unpacked archive, as TorchServe's worker does."""
    sys.path.insert(0, str(folder))
    handler = importlib.import_module("image_classifier_handler").ImageClassifierHandler()
    config = YAML(typ="safe").load(folder / "model-config.yaml")
    config["handler"]["threads"] = threads
    context = FakeContext(folder, model_yaml_config=config, batch_size=batch_size)
    handler.initialize(context)
    return handler, context


def stock_handler(folder: Path, labels: bytes, batch_size: int) -> tuple[Any, FakeContext]:
    """Trace the model as TorchServe's documentation does, and load the stock handler on it."""
    from ts.torch_handler.image_classifier import ImageClassifier

    recipe = load_image_recipe(RECIPE)
    classifier = recipe.build()
    apply_weights(classifier, load_weights("recipe", recipe, REPOSITORY))
    wanted = recipe.preprocessing
    traced = torch.jit.trace(classifier.eval(), torch.rand(1, 3, *wanted.crop), check_trace=False)
    torch.jit.save(traced, folder / "model.pt")
    (folder / "index_to_name.json").write_bytes(labels)
    handler = ImageClassifier()
    handler.image_processing = transforms.Compose(
        [
            transforms.Resize(wanted.resize, transforms.InterpolationMode(wanted.interpolation)),
            transforms.CenterCrop(wanted.crop),
            transforms.ToTensor(),
            transforms.Normalize(wanted.mean, wanted.std),
        ]
    )
    manifest = {"model": {"modelName": "stock", "serializedFile": "model.pt"}}
    context = FakeContext(folder, manifest=manifest, model_yaml_config={}, batch_size=batch_size)
    context.metrics = NoMetrics()
    handler.initialize(context)
    return handler, context


def our_parts(archive: Path, batch_size: int, threads: int) -> dict[str, Work]:
    """Load the archive's handler; return it and its parts as calls without arguments."""
    with unpacked(archive) as ours:
        handler, context = our_handler(ours.folder, batch_size, threads)
    rows = context.batch(photos(batch_size))
    bodies = [row["body"] for row in rows]
    decode_image = importlib.import_module("marsmith_handler.image.decoding").decode_image
    run = handler._pool.map if handler._pool else map

    def decode(body: bytearray) -> torch.Tensor:
        pixels: torch.Tensor = decode_image(body, **handler.decoding)
        return pixels

    pixels = torch.stack([decode(body) for body in bodies])
    return {
        "whole": lambda: handler.handle(rows, context),
        "decode": lambda: list(run(decode, bodies)),
        "model": lambda: infer(handler.model, pixels),
    }


def parts_without_kept_memory(archive: Path, batch_size: int, threads: int) -> dict[str, Work]:
    """Return the archive's handler with freed memory going back to the system, as glibc has it."""
    os.environ["GLIBC_TUNABLES"] = ""
    return {"whole, fresh": our_parts(archive, batch_size, threads)["whole"]}


def stock_parts(archive: Path, batch_size: int, threads: int) -> dict[str, Work]:
    """Trace the same weights for the stock handler; return it and its parts as calls without arguments."""
    with unpacked(archive) as ours, tempfile.TemporaryDirectory() as folder:
        labels = (ours.folder / "index_to_name.json").read_bytes()
        handler, context = stock_handler(Path(folder), labels, batch_size)
    torch.set_num_threads(threads)
    rows = context.batch(photos(batch_size))
    floats = handler.preprocess(rows)
    return {
        "stock": lambda: handler.handle(rows, context),
        "stock decode": lambda: handler.preprocess(rows),
        "stock model": lambda: infer(handler.model, floats),
    }


def infer(model: Any, batch: torch.Tensor) -> object:
    """Call a model as both handlers do."""
    with torch.inference_mode():
        return model(batch)


def work_in_turns(channel: Connection, parts: Parts, archive: Path, batch_size: int, threads: int) -> None:
    """In a process of its own: do what the channel names, and send how long it took, in ms, and what came of it."""
    # torch deprecates TorchScript, which both handlers serve.
    warnings.simplefilter("ignore")
    works = parts(archive, batch_size, threads)
    channel.send(list(works))
    while name := channel.recv():
        start = time.perf_counter()
        result = works[name]()
        took_ms = (time.perf_counter() - start) * 1000
        channel.send((took_ms, result if name in {"whole", "stock"} else None))


@contextmanager
def worker(parts: Parts, archive: Path, batch_size: int, threads: int) -> Iterator[dict[str, Connection]]:
    """Start a process, as TorchServe does for a model; give what it can do, and the channel to ask it by."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=work_in_turns, args=(there, parts, archive, batch_size, threads), daemon=True
    )
    process.start()
    there.close()
    try:
        yield dict.fromkeys(here.recv(), here)
    finally:
        here.send("")
        process.join(10)


def largest_difference(ours: Sequence[bytes], stock: Sequence[dict[str, float]]) -> float:
    """Return the largest difference of a best probability; infinite where the best class differs."""
    largest = 0.0
    for own, other in zip(map(json.loads, ours), stock, strict=True):
        (label, probability), (wanted, expected) = next(iter(own.items())), next(iter(other.items()))
        largest = max(largest, abs(probability - expected) if label == wanted else float("inf"))
    return largest


def ask(channel: Connection, name: str) -> tuple[float, Any]:
    """Have one piece of work done; return how long it took, in ms, and what came of it."""
    channel.send(name)
    took_ms, result = channel.recv()
    return took_ms, result


def take_turns(channels: dict[str, Connection], rounds: int) -> dict[str, Time]:
    """Time every contestant once a round, in a new order each; the first three rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in channels}
    order = list(channels)
    shuffled = random.Random(0)
    for number in range(rounds + 3):
        shuffled.shuffle(order)
        for name in order:
            took_ms, _ = ask(channels[name], name)
            if number >= 3:
                times[name].append(took_ms)
    return {name: _time(values) for name, values in times.items()}


def _time(values: list[float]) -> Time:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Time(round(median, 2), round(lower, 2), round(upper, 2))


def ratios(times: dict[str, Time]) -> dict[str, float]:
    """Return what the targets are about, and what limits them."""
    ms = {name: one.median_ms for name, one in times.items()}
    return {
        "limit": round((ms["decode"] + ms["model"]) / ms["whole"], 3),
        "against stock": round(ms["stock"] / ms["whole"], 2),
        "decode against stock": round(ms["stock decode"] / ms["decode"], 2),
        "model against stock": round(ms["stock model"] / ms["model"], 2),
        "kept memory": round(ms["whole, fresh"] / ms["whole"], 2),
        "share of the model in whole": round(ms["model"] / ms["whole"], 2),
    }


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    flags = next((line.partition(": ")[2].split() for line in lines if line.startswith("flags")), [])
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count() or 1,
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "torch": torch.__version__,
        "load": [round(one, 1) for one in os.getloadavg()],
    }


def measure(archive: Path, batch_size: int, threads: int, rounds: int) -> dict[str, Any]:
    """Run the benchmark and return the facts."""
    facts = {"machine": machine(), "batch_size": batch_size, "threads": threads, "rounds": rounds}
    settings = (archive, batch_size, threads)
    with ExitStack() as stack:
        ours, fresh, stock = (
            stack.enter_context(worker(parts, *settings))
            for parts in (our_parts, parts_without_kept_memory, stock_parts)
        )
        channels = ours | fresh | stock
        (_, own), (_, other) = ask(ours["whole"], "whole"), ask(stock["stock"], "stock")
        times = take_turns(channels, rounds)
    return {**facts, "largest_difference": largest_difference(own, other), "times": times, "ratios": ratios(times)}


def show(facts: dict[str, Any]) -> None:
    """Print the table."""
    own = ("batch_size", "threads", "rounds", "largest_difference")
    print("  ".join(f"{key} {value}" for key, value in facts["machine"].items()))
    print("  ".join(f"{key} {facts[key]}" for key in own))
    print(f"{'':14} {'median ms':>10} {'quartiles':>18} {'images/s':>9}")
    for name, one in facts["times"].items():
        rate = 1000 * facts["batch_size"] / one.median_ms
        print(f"{name:14} {one.median_ms:10.2f} {one.lower_ms:8.2f} to {one.upper_ms:6.2f} {rate:9.0f}")
    found = facts["ratios"]
    print(f"limit: (decode + model) / whole = {found['limit']}, target {LIMIT_TARGET}")
    print(f"stock / whole = {found['against stock']}, target {STOCK_TARGET}", end="; ")
    print(f"decode alone {found['decode against stock']}, model alone {found['model against stock']} times")
    print(f"whole, fresh / whole = {found['kept memory']}")
    print(f"the model is {found['share of the model in whole']} of whole")


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="of the default model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's, of both handlers")
    parser.add_argument("--rounds", type=int, default=40, help="rounds that count")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    facts = measure(args.archive, args.batch_size, args.threads, args.rounds)
    if args.json:
        print(json.dumps({**facts, "times": {name: asdict(one) for name, one in facts["times"].items()}}))
    else:
        show(facts)


if __name__ == "__main__":
    main()
