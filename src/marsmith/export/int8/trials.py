"""Trials of a search: quantise one model repeatedly, and reuse everything that does not change. Imports onnx."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import torch

from marsmith.config.form import Form
from marsmith.export.formats.onnx import refuse_telemetry
from marsmith.export.int8.engines import open_in_engine
from marsmith.export.int8.graph import Graph, Layer, attribute
from marsmith.export.int8.onnx import Calibrated, calibrate, float_model, quantize_calibrated, write_int8_onnx
from marsmith.export.int8.plan import Int8Plan
from marsmith.export.int8.search import Forward, Judge

# Cost of writing and reading an activation in float32, in multiplications.
_MULTIPLICATIONS_A_VALUE = 40
# Number of consecutive layers in a trial: a single float32 layer between two int8 layers still reads and writes 8 bits.
_RUN = 3


class Trials(Protocol):
    """Interface of an engine's quantisation for a search."""

    def settings(self) -> Iterator[Int8Plan]:
        """Return the plans to compare, with all layers in int8."""
        ...

    def noise_db(self, plan: Int8Plan) -> float:
        """Return the signal-to-noise ratio of a plan, in decibels."""
        ...

    def ranked(self, plan: Int8Plan) -> list[tuple[str, ...]]:
        """Return runs of layers, the most noise for its cost first."""
        ...

    def forward(self, plan: Int8Plan) -> Forward:
        """Quantise by a plan, and open the result in the engine."""
        ...


def trials_of(
    graph: torch.nn.Module, form: Form, calibration: Sequence[torch.Tensor], judge: Judge, folder: Path
) -> Trials:
    """Return the trials of a form; their files are in ``folder``."""
    refuse_telemetry()
    model = float_model(graph, calibration, folder)
    engine = "onnxruntime" if form.engine == "torch" else form.engine
    through_onnx = OnnxTrials(model, engine, tuple(calibration), judge, folder)
    return TorchTrials(graph, through_onnx) if form.engine == "torch" else through_onnx


@dataclass
class OnnxTrials:
    """Trials with ONNX, run in ``engine``."""

    model: onnx.ModelProto
    engine: str
    calibration: tuple[torch.Tensor, ...]
    judge: Judge
    folder: Path
    _calibrated: Calibrated | None = field(default=None, init=False)

    def settings(self) -> Iterator[Int8Plan]:
        """Return the plans to compare, with all layers in int8."""
        for ranges in ("histogram", "minmax", "percentile"):
            yield Int8Plan(ranges=ranges, images=len(self.calibration))

    def noise_db(self, plan: Int8Plan) -> float:
        """Return the signal-to-noise ratio of a plan, in decibels."""
        # Settings concern the arithmetic, not the engine; this engine runs every layer as written.
        return self.judge.signal_to_noise_db(self._open(plan, "onnxruntime"))

    def ranked(self, plan: Int8Plan) -> list[tuple[str, ...]]:
        """Return runs of layers, the most noise for its cost first."""
        layers = Graph(self.model).layers
        shapes = _shapes(self.model)
        everything = _noise(self.judge.signal_to_noise_db(self._open(plan, self.engine)))
        gains: dict[tuple[str, ...], float] = {}
        for start in range(max(len(layers) - _RUN + 1, 1)):
            run = layers[start : start + _RUN]
            names = tuple(layer.name for layer in run)
            left = _noise(self.judge.signal_to_noise_db(self._open(replace(plan, float_layers=names), self.engine)))
            # Divided by the root of the cost: with the cost itself, cheap layers with almost no noise would come first.
            gains[names] = (everything - left) / sum(_cost(layer, self.model, shapes) for layer in run) ** 0.5
        return sorted(gains, key=lambda names: -gains[names])

    def forward(self, plan: Int8Plan) -> Forward:
        """Quantise by a plan, and open the result in the engine."""
        return self._open(plan, self.engine)

    def _open(self, plan: Int8Plan, engine: str) -> Forward:
        path = self.folder / "trial.onnx"
        write_int8_onnx(quantize_calibrated(self._calibrate(plan), plan, engine), path)
        return open_in_engine(path, engine)

    def _calibrate(self, plan: Int8Plan) -> Calibrated:
        if self._calibrated is None:
            # Including everything that any plan may need.
            self._calibrated = calibrate(self.model, Int8Plan(images=plan.images), self.calibration)
        return self._calibrated


@dataclass
class TorchTrials:
    """Trials with torch.ao. Layers are ranked by their noise in ONNX, where a trial takes a tenth of the time."""

    graph: torch.nn.Module
    through_onnx: OnnxTrials

    def settings(self) -> Iterator[Int8Plan]:
        """Return the plans to compare, with all layers in int8."""
        for ranges in ("histogram", "minmax"):
            yield Int8Plan(
                ranges=ranges, rounding="nearest", correct_bias=False, images=len(self.through_onnx.calibration)
            )

    def noise_db(self, plan: Int8Plan) -> float:
        """Return the signal-to-noise ratio of a plan, in decibels."""
        return self.through_onnx.judge.signal_to_noise_db(self.forward(plan))

    def ranked(self, plan: Int8Plan) -> list[tuple[str, ...]]:
        """Return runs of layers, the most noise for its cost first."""
        from marsmith.export.int8.torch import layers

        known = set(layers(self.graph))
        return [names for names in self.through_onnx.ranked(plan) if known.issuperset(names)]

    def forward(self, plan: Int8Plan) -> Forward:
        """Quantise by a plan, and open the result in the engine."""
        from marsmith.export.int8.torch import write_int8_torchscript

        path = self.through_onnx.folder / "trial.pt"
        calibration = self.through_onnx.calibration
        write_int8_torchscript(self.graph, plan, calibration, calibration, path)
        return open_in_engine(path, "torch")


def _noise(decibels: float) -> float:
    """Return the noise as a share of the signal."""
    return float(10 ** (-decibels / 10))


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of one row of each tensor; an unknown dimension counts as 1."""
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {value.name: [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim][1:] for value in values}


def _cost(layer: Layer, model: onnx.ModelProto, shapes: dict[str, list[int]]) -> float:
    """Return the additional cost of a layer in float32, in multiplications."""
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == layer.weight)
    written = float(np.prod(shapes.get(layer.node.output[0], [1])))
    read = float(np.prod(shapes.get(layer.input, [1])))
    taps = float(np.prod(weight.dims[1:]))
    if attribute(layer.node, "group", 1) < 1 or taps < 1:
        return 1.0
    return written * taps + _MULTIPLICATIONS_A_VALUE * (written + read)
