"""What decoding and the model reach in process, with no server at all: the limit that serving is measured against.

As many processes as there would be workers, each with its share of the threads, decode batches and run the model over
and over, with the very code and engine of the archive.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import time
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from marsmith.archive.unpacked import unpacked
from marsmith.runtime.fake_context import FakeContext


def images_per_second(
    archive: Path, bodies: Sequence[bytes], *, workers: int, threads: int, batch_size: int = 8, seconds: float = 4.0
) -> float:
    """Return decoded and classified images per second of ``workers`` processes together."""
    context = multiprocessing.get_context("spawn")
    with unpacked(archive) as content:
        pipes, processes = [], []
        for _ in range(workers):
            here, there = context.Pipe()
            args = (there, content.folder, [bytes(body) for body in bodies], threads, batch_size, seconds)
            child = context.Process(target=_work, args=args, daemon=True)
            child.start()
            pipes.append(here)
            processes.append(child)
        # All are loaded and warm before any begins.
        for pipe in pipes:
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        rates = [float(pipe.recv()) for pipe in pipes]
        for child in processes:
            child.join()
    return sum(rates)


def _work(
    channel: Connection, folder: Path, bodies: list[bytes], threads: int, batch_size: int, seconds: float
) -> None:
    warnings.simplefilter("ignore")
    import torch

    handler, decode_image = load_handler(folder, threads, batch_size)
    run = handler._pool.map if handler._pool else map

    def decode(body: bytes) -> Any:
        with torch.inference_mode():
            return decode_image(body, **handler.decoding)

    def batch(start: int) -> None:
        chosen = [bodies[(start + index) % len(bodies)] for index in range(batch_size)]
        with torch.inference_mode():
            handler.infer(list(run(decode, chosen)))

    for start in range(4):
        batch(start)
    channel.send("ready")
    channel.recv()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        batch(done)
        done += batch_size
    channel.send(done / (time.perf_counter() - begun))


def load_handler(folder: Path, threads: int, batch_size: int) -> tuple[Any, Any]:
    """Load the handler of an unpacked archive as TorchServe's worker does; return it and its decoding function."""
    from ruamel.yaml import YAML

    sys.path.insert(0, str(folder))
    module = importlib.import_module("image_classifier_handler")
    config = YAML(typ="safe").load(folder / "model-config.yaml")
    config["handler"] |= {"threads": threads}
    handler = module.ImageClassifierHandler()
    handler.initialize(FakeContext(folder, model_yaml_config=config, batch_size=batch_size))
    return handler, importlib.import_module("marsmith_handler.image.decoding").decode_image
