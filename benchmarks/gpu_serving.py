"""JPEG to answer on a GPU: our handler without a server, and over HTTP with TorchServe where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marsmith.loadtest.driver import arrivals
from marsmith.loadtest.measurement import Measurement, quantile
from marsmith.loadtest.tune.queue_model import latencies, predicted_rate
from marsmith.loadtest.tune.setup import ServiceTime
from marsmith.runtime.fake_context import FakeContext

REPOSITORY = Path(__file__).resolve().parents[1]
HANDLER = REPOSITORY / "handlers" / "image_classifier_handler.py"
MAX_BATCH_DELAY_MS = 1
SIMULATED_S = 60.0
# What the server needs besides torch; a machine may have none of it.
NEEDED = ("ts", "model_archiver", "pydantic", "ruamel.yaml", "psutil")


def write_folder(folder: Path, name: str, batch_size: int, crop: tuple[int, int], resize: int) -> None:
    """Lay out an unpacked archive around ``folder``/model.pt: the handler, its configuration, its manifest."""
    from marsmith.runtime.imports import local_imports

    for path in (HANDLER, *local_imports(HANDLER)):
        place = folder / path.relative_to(HANDLER.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    config = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": batch_size,
        "maxBatchDelay": MAX_BATCH_DELAY_MS,
        "responseTimeout": 60,
        "startupTimeout": 300,
        "jobQueueSize": 1000,
        "maxRetryTimeoutInSec": 30,
        "handler": {"resize": resize, "crop": list(crop), "top_k": 5, "environment": "off"},
    }
    model = {"modelName": name, "modelVersion": "1.0", "serializedFile": "model.pt", "handler": HANDLER.name}
    # JSON is YAML, and needs no package to write it.
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    (folder / "MAR-INF").mkdir(exist_ok=True)
    manifest = {"model": {**model, "configFile": "model-config.yaml"}, "runtime": "python", "archiverVersion": "0.12.0"}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")


def handler_times(
    folder: Path, device: torch.device, bodies: Sequence[bytes], batch_sizes: Sequence[int], seconds: float
) -> dict[int, float]:
    """Return batch size -> median milliseconds of ``handle``, from JPEG bytes to JSON bytes."""
    sys.path.insert(0, str(folder))
    handler = importlib.import_module(HANDLER.stem).ImageClassifierHandler()
    config = json.loads((folder / "model-config.yaml").read_text(encoding="utf-8"))
    gpu = (device.index or 0) if device.type == "cuda" else None
    context = FakeContext(folder, model_yaml_config=config, batch_size=max(batch_sizes), gpu_id=gpu)
    handler.initialize(context)
    return {size: _handler_ms(handler, context, bodies, size, seconds) for size in batch_sizes}


def _handler_ms(handler: Any, context: FakeContext, bodies: Sequence[bytes], size: int, seconds: float) -> float:
    rows = context.batch([bodies[index % len(bodies)] for index in range(size)])
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        start = time.perf_counter()
        handler.handle(rows, context)
        taken.append(1000 * (time.perf_counter() - start))
        if set(context.statuses) != {200}:
            raise RuntimeError(f"the handler answers {context.statuses}")
    return statistics.median(taken[2:])


@dataclass(frozen=True)
class Simulated:
    """What the handler's times give behind TorchServe's batching, without its frontend: an estimate, no measurement.

    Attributes:
        rps: requests per second, Poisson.
        p99_ms: at that rate, in milliseconds.
        largest_rps: largest rate within the limit.
    """

    rps: float
    p99_ms: float
    largest_rps: float


def simulate(ms: Mapping[int, float], *, rps: float, p99_ms: float) -> Simulated:
    """Let one worker with these times answer Poisson arrivals."""
    service = ServiceTime({size: value / 1000 for size, value in ms.items()})
    delay_s, size = MAX_BATCH_DELAY_MS / 1000, max(ms)
    due = arrivals("poisson", rps, SIMULATED_S)
    seconds = latencies(due, service, workers=1, batch_size=size, max_batch_delay_s=delay_s)
    largest = predicted_rate(service, workers=1, batch_size=size, max_batch_delay_s=delay_s, p99_s=p99_ms / 1000)
    return Simulated(rps, 1000 * quantile(sorted(seconds), 0.99), largest)


def why_no_server() -> str:
    """Return what TorchServe lacks on this machine; empty where it can run."""
    lacking = [name for name in NEEDED if not _is_installed(name)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    from marsmith.errors import MarsmithError
    from marsmith.server.java import find_java

    try:
        find_java()
    except MarsmithError as error:
        return error.message
    return ""


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def write_mar(folder: Path, name: str, target: Path) -> Path:
    """Write the folder as an archive of ours."""
    from marsmith.archive import Manifest, Member, write_archive

    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix in (".py", ".pt", ".yaml")]
    manifest = Manifest(
        model_name=name,
        model_version="1.0",
        serialized_file="model.pt",
        handler=HANDLER.name,
        config_file="model-config.yaml",
        marsmith={"formatVersion": 1},
    )
    write_archive(manifest, [Member(path.relative_to(folder).as_posix(), path) for path in files], target, force=True)
    return target


def write_stock_mar(classifier: torch.nn.Module, device: torch.device, crop: tuple[int, int], folder: Path) -> Path:
    """Trace the float32 network as people do, and package it with torch-model-archiver and image_classifier."""
    from contenders import stock_archive

    folder.mkdir()
    with warnings.catch_warnings(), torch.inference_mode():
        # torch deprecates TorchScript, which the stock handler serves.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(classifier, torch.rand(1, 3, *crop, device=device), check_trace=False)
        torch.jit.save(traced, folder / "traced.pt")
    labels = folder / "index_to_name.json"
    labels.write_text(json.dumps({str(index): str(index) for index in range(1000)}), encoding="utf-8")
    return stock_archive(folder / "traced.pt", labels, folder)


@dataclass(frozen=True)
class Served:
    """What a server did.

    Attributes:
        name: which one.
        closed: clients -> measurement.
        at_rate: the measurement at the rate of the design goal.
    """

    name: str
    closed: dict[int, Measurement]
    at_rate: Measurement


def serve_both(
    ours: Path, stock: Path, bodies: Sequence[bytes], *, clients: Sequence[int], rps: float, seconds: float
) -> list[Served]:
    """Serve our archive and the stock one, one after the other, and load both in the same way."""
    from contenders import marsmith_server, stock_server
    from marsmith.loadtest import Load, run_load
    from marsmith.project import Project

    found = []
    servers = {
        "marsmith": marsmith_server(Project(REPOSITORY), ours, bodies),
        "stock": stock_server(stock, bodies),
    }
    for name, serve in servers.items():
        with serve() as target:
            run_load(target, Load(clients=max(clients), seconds=2.0, warm_up_s=0))
            closed = {count: run_load(target, Load(clients=count, seconds=seconds)) for count in clients}
            found.append(Served(name, closed, run_load(target, Load(rps=rps, seconds=seconds))))
    return found
