"""A classifier in the forms that a GPU can run it in, and how long a batch takes in each."""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from marsmith.errors import MarsmithError
from marsmith.export import ImagePreprocessing
from marsmith.export.formats.torchscript import in_half_precision
from marsmith.export.image_graph import ImageGraph

PREPROCESSING = ImagePreprocessing()
EAGER = "eager float32"
WARM_UP_RUNS = 5
Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FormTimes:
    """How long batches take in one form.

    Attributes:
        form: what it is.
        ms: batch size to median milliseconds, from the uint8 batch on the device to probabilities there.
        difference: largest difference of a probability from eager float32's, as a share of its largest one.
        refused: why there are no times; empty where there are.
    """

    form: str
    ms: dict[int, float]
    difference: float = float("nan")
    refused: str = ""


def build_graph(name: str, device: torch.device) -> ImageGraph:
    """Return a network of torchvision with random weights: uint8 pixels in, probabilities out, float32."""
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(name, weights=None).eval()
    for layer in classifier.modules():
        # torchvision leaves ViT's last layer at zero: every answer would be the same, and every form right.
        if isinstance(layer, torch.nn.Linear) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.02)
    return ImageGraph(classifier, PREPROCESSING).eval().to(device)


def megabytes(module: torch.nn.Module) -> float:
    """Return the size of the weights, in MB."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters()) / 1e6


def pixels(count: int, device: torch.device) -> torch.Tensor:
    """Return a batch of noise, uint8 (count, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, *PREPROCESSING.crop)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def torchscript(graph: ImageGraph, precision: str, device: torch.device, path: Path) -> Run:
    """Trace, freeze and save in ``precision``, weights in channels-last; return what a worker loads."""
    made = in_half_precision(graph, precision) if precision != "float32" else copy.deepcopy(graph)
    made = made.to(memory_format=torch.channels_last)
    with warnings.catch_warnings(), torch.inference_mode():
        # torch deprecates TorchScript, which TorchServe serves.
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(made, pixels(2, device), check_trace=False).eval())
        torch.jit.save(frozen, path)
        loaded: Run = torch.jit.load(path, map_location=device).eval()
    return loaded


class Captured:
    """A module as CUDA graphs, one for each batch size, captured when it is first seen."""

    def __init__(self, module: Run) -> None:
        self._module = module
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run a batch; the result is overwritten by the next one of its size."""
        if len(batch) not in self._graphs:
            self._graphs[len(batch)] = self._capture(batch)
        graph, inputs, outputs = self._graphs[len(batch)]
        inputs.copy_(batch)
        graph.replay()
        return outputs

    def _capture(self, batch: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        inputs, side = batch.clone(), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._module(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._module(inputs)
        return graph, inputs, outputs


def aot_inductor(graph: ImageGraph, precision: str, device: torch.device, path: Path) -> Run:
    """Compile ahead of time; return what a worker loads.

    Raises:
        ExportError: no compiler, or it cannot.
    """
    from torch._inductor import aoti_load_package

    from marsmith.export.formats.pt2 import to_pt2

    made = in_half_precision(graph, precision) if precision != "float32" else graph
    to_pt2(made, list(pixels(2, torch.device("cpu"))), path, device.type)
    index = (device.index or 0) if device.type == "cuda" else -1
    loaded: Run = aoti_load_package(str(path), device_index=index)
    return loaded


def measure_forms(
    graph: ImageGraph, precision: str, device: torch.device, batch_sizes: Sequence[int], folder: Path, seconds: float
) -> list[FormTimes]:
    """Time every form that this machine can run; the TorchScript file stays in ``folder`` as model.pt."""
    script = torchscript(graph, precision, device, folder / "model.pt")
    makers: dict[str, Callable[[], Run]] = {
        EAGER: lambda: graph,
        f"TorchScript {precision}": lambda: script,
        f"AOTInductor {precision}": lambda: aot_inductor(graph, precision, device, folder / "model.pt2"),
    }
    if device.type == "cuda":
        makers[f"TorchScript {precision}, CUDA graphs"] = lambda: Captured(script)
    with torch.inference_mode():
        expected = graph(pixels(2, device))
        return [_measure(name, make, expected, device, batch_sizes, seconds) for name, make in makers.items()]


def _measure(
    name: str,
    make: Callable[[], Run],
    expected: torch.Tensor,
    device: torch.device,
    batch_sizes: Sequence[int],
    seconds: float,
) -> FormTimes:
    try:
        run = make()
        difference = float((run(pixels(2, device)) - expected).abs().max() / expected.max())
        times = {size: milliseconds(run, pixels(size, device), device, seconds) for size in batch_sizes}
    except (RuntimeError, ImportError, ValueError, OSError, MarsmithError) as error:
        return FormTimes(name, {}, refused=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return FormTimes(name, times, difference)


def milliseconds(run: Run, batch: torch.Tensor, device: torch.device, seconds: float) -> float:
    """Return the median time of a batch, in milliseconds, each waited for."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM_UP_RUNS):
        run(batch)
    wait()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        run(batch)
        wait()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return what figures of a GPU belong to."""
    if device.type != "cuda":
        return {"device": "cpu", "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "memoryGiB": round(properties.total_memory / 2**30, 1),
        "computeCapability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
    }
