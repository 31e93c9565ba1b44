"""Quantises one model again and again while a plan is searched, and keeps what does not change. Imports onnx."""

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

# An activation that is written and read again in float32 costs about as much as so many multiplications.
_MULTIPLICATIONS_A_VALUE = 40
# Layers in a row that are tried together: between two int8 layers a single float32 one still reads and writes 8 bits.
_RUN = 3


class Trials(Protocol):
    """What a search asks of an engine's way to quantise."""

    def settings(self) -> Iterator[Int8Plan]:
        """Return the plans to compare, all with every layer in int8."""
        ...

    def noise_db(self, plan: Int8Plan) -> float:
        """Return how far the outputs of a plan stand above its noise, in decibels."""
        ...

    def ranked(self, plan: Int8Plan) -> list[tuple[str, ...]]:
        """Return runs of layers, that with the most noise for its cost first."""
        ...

    def forward(self, plan: Int8Plan) -> Forward:
        """Quantise as a plan says, and open the result in the engine."""
        ...


def trials_of(
    graph: torch.nn.Module, form: Form, calibration: Sequence[torch.Tensor], judge: Judge, folder: Path
) -> Trials:
    """Return the trials of a form; their files lie in ``folder``."""
    refuse_telemetry()
    model = float_model(graph, calibration, folder)
    engine = "onnxruntime" if form.engine == "torch" else form.engine
    through_onnx = OnnxTrials(model, engine, tuple(calibration), judge, folder)
    return TorchTrials(graph, through_onnx) if form.engine == "torch" else through_onnx


@dataclass
class OnnxTrials:
    """By ONNX, run in ``engine``."""

    model: onnx.ModelProto
    engine: str
    calibration: tuple[torch.Tensor, ...]
    judge: Judge
    folder: Path
    _calibrated: Calibrated | None = field(default=None, init=False)

    def settings(self) -> Iterator[Int8Plan]:
        """Return the plans to compare, all with every layer in int8."""
        for ranges in ("histogram", "minmax", "percentile"):
            yield Int8Plan(ranges=ranges, images=len(self.calibration))

    def noise_db(self, plan: Int8Plan) -> float:
        """Return how far the outputs of a plan stand above its noise, in decibels."""
        # Settings are of the arithmetic, not of the engine; this one runs every layer as it is written.
        return self.judge.signal_to_noise_db(self._open(plan, "onnxruntime"))

    def ranked(self, plan: Int8Plan) -> list[tuple[str, ...]]:
        """Return runs of layers, that with the most noise for its cost first."""
        layers = Graph(self.model).layers
        shapes = _shapes(self.model)
        everything = _noise(self.judge.signal_to_noise_db(self._open(plan, self.engine)))
        gains: dict[tuple[str, ...], float] = {}
        for start in range(max(len(layers) - _RUN + 1, 1)):
            run = layers[start : start + _RUN]
            names = tuple(layer.name for layer in run)
            left = _noise(self.judge.signal_to_noise_db(self._open(replace(plan, float_layers=names), self.engine)))
            # By the root of the cost: by the cost itself cheap layers that add next to nothing would all come first.
            gains[names] = (everything - left) / sum(_cost(layer, self.model, shapes) for layer in run) ** 0.5
        return sorted(gains, key=lambda names: -gains[names])

    def forward(self, plan: Int8Plan) -> Forward:
        """Quantise as a plan says, and open the result in the engine."""
        return self._open(plan, self.engine)

    def _open(self, plan: Int8Plan, engine: str) -> Forward:
        path = self.folder / "trial.onnx"
        write_int8_onnx(quantize_calibrated(self._calibrate(plan), plan, engine), path)
        return open_in_engine(path, engine)

    def _calibrate(self, plan: Int8Plan) -> Calibrated:
        if self._calibrated is None:
            # With everything that any plan may ask for.
            self._calibrated = calibrate(self.model, Int8Plan(images=plan.images), self.calibration)
        return self._calibrated


@dataclass
class TorchTrials:
    """By torch.ao; layers are ranked by what they do in ONNX, where one is tried in a tenth of the time."""

    graph: torch.nn.Module
    through_onnx: OnnxTrials

    def settings(self) -> Iterator[Int8Plan]:
        """Return the plans to compare, all with every layer in int8."""
        for ranges in ("histogram", "minmax"):
            yield Int8Plan(
                ranges=ranges, rounding="nearest", correct_bias=False, images=len(self.through_onnx.calibration)
            )

    def noise_db(self, plan: Int8Plan) -> float:
        """Return how far the outputs of a plan stand above its noise, in decibels."""
        return self.through_onnx.judge.signal_to_noise_db(self.forward(plan))

    def ranked(self, plan: Int8Plan) -> list[tuple[str, ...]]:
        """Return runs of layers, that with the most noise for its cost first."""
        from marsmith.export.int8.torch import layers

        known = set(layers(self.graph))
        return [names for names in self.through_onnx.ranked(plan) if known.issuperset(names)]

    def forward(self, plan: Int8Plan) -> Forward:
        """Quantise as a plan says, and open the result in the engine."""
        from marsmith.export.int8.torch import write_int8_torchscript

        path = self.through_onnx.folder / "trial.pt"
        calibration = self.through_onnx.calibration
        write_int8_torchscript(self.graph, plan, calibration, calibration, path)
        return open_in_engine(path, "torch")


def _noise(decibels: float) -> float:
    """Return noise as a share of the signal."""
    return float(10 ** (-decibels / 10))


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return the shapes of one row of each tensor; a dimension that is not known counts as 1."""
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    return {value.name: [max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim][1:] for value in values}


def _cost(layer: Layer, model: onnx.ModelProto, shapes: dict[str, list[int]]) -> float:
    """Return what a layer costs more in float32, in multiplications."""
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == layer.weight)
    written = float(np.prod(shapes.get(layer.node.output[0], [1])))
    read = float(np.prod(shapes.get(layer.input, [1])))
    taps = float(np.prod(weight.dims[1:]))
    if attribute(layer.node, "group", 1) < 1 or taps < 1:
        return 1.0
    return written * taps + _MULTIPLICATIONS_A_VALUE * (written + read)
