"""Calibration: values of a model's activations on images, and the 8-bit range of each activation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper

from marsmith.errors import ExportError
from marsmith.export.int8.graph import Array
from marsmith.export.int8.plan import Int8Plan

BATCH_SIZE = 8
_BINS = 2048
# Neighbouring values are similar: a third of them gives the same histogram in a third of the time.
_STRIDE = 3
# Candidate ends of the range, as shares of the extremes.
_SHARES = tuple(np.linspace(0.3, 1.0, 29).tolist())
Range = tuple[float, float]


@dataclass
class Observed:
    """One activation over all calibration images.

    Attributes:
        low: smallest value of each channel (C,).
        high: largest value of each channel (C,).
        mean: mean of each channel (C,).
        square: mean square of each channel (C,).
        counts: histogram between the extremes (bins,).
    """

    low: Array
    high: Array
    mean: Array
    square: Array
    counts: Array

    @property
    def extremes(self) -> Range:
        """Smallest and largest value of all channels."""
        return float(self.low.min()), float(self.high.max())


def batches(images: Sequence[torch.Tensor]) -> Iterator[Array]:
    """Stack uint8 (3, H, W) to arrays (N, 3, H, W), N at most BATCH_SIZE."""
    for start in range(0, len(images), BATCH_SIZE):
        yield torch.stack(list(images[start : start + BATCH_SIZE])).numpy()


class ActivationProbe:
    """Runs a model and returns inner tensors.

    Args:
        model: a float32 ONNX model with one input.
        names: names of the tensors to return.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        shown = copy.deepcopy(model)
        known = {value.name for value in shown.graph.output}
        shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
        options = onnxruntime.SessionOptions()
        # Without optimisation, so that the tensors exist and sums are the same in every run.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        self.names = list(names)
        self._input = shown.graph.input[0].name
        self._session = onnxruntime.InferenceSession(
            shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, batch: Array) -> dict[str, Array]:
        """Return the tensors for one batch uint8 (N, 3, H, W)."""
        return dict(zip(self.names, self._session.run(self.names, {self._input: batch}), strict=True))


def observe(model: onnx.ModelProto, names: Sequence[str], images: Sequence[torch.Tensor]) -> dict[str, Observed]:
    """Run ``images`` through a float32 model twice: first for the extremes, then for histograms.

    Raises:
        ExportError: there are no images, or an activation is not finite.
    """
    if not images:
        raise ExportError("int8 needs calibration images", tip="name some in the spec: export.calibration")
    probe = ActivationProbe(model, names)
    seen: dict[str, list[Observed]] = {name: [] for name in names}
    for batch in batches(images):
        for name, values in probe(batch).items():
            seen[name].append(_summary(values))
    merged = {name: _merge(parts) for name, parts in seen.items()}
    broken = [name for name, one in merged.items() if not np.isfinite(one.extremes).all()]
    if broken:
        raise ExportError(f"activations that are not finite on the calibration images: {', '.join(broken[:5])}")
    for batch in batches(images):
        for name, values in probe(batch).items():
            low, high = merged[name].extremes
            counted = torch.histc(torch.from_numpy(values.reshape(-1)[::_STRIDE]), _BINS, low, max(high, low + 1e-9))
            merged[name].counts += counted.to(torch.int64).numpy()
    return merged


def find_ranges(observed: Mapping[str, Observed], plan: Int8Plan) -> dict[str, Range]:
    """Return the range of each activation. It always contains zero, which padding and Relu need exactly."""
    find = {
        "minmax": lambda one: one.extremes,
        "percentile": lambda one: _percentile(one, plan.percentile),
        "histogram": _least_error,
    }[plan.ranges]
    return {name: _with_zero(find(one)) for name, one in observed.items()}


def quantization(span: Range) -> tuple[float, int]:
    """Return scale and zero point of a range in uint8."""
    low, high = span
    scale = float(np.float32(max((high - low) / 255, 1e-8)))
    return scale, int(np.clip(round(-low / scale), 0, 255))


def _with_zero(span: Range) -> Range:
    return min(span[0], 0.0), max(span[1], 0.0)


def _summary(values: Array) -> Observed:
    tensor = torch.from_numpy(values)
    axes = [axis for axis in range(tensor.ndim) if axis != 1]
    sums = (tensor.mean(axes), tensor.square().mean(axes))
    mean, square = (part.to(torch.float64).mul(len(tensor)).numpy() for part in sums)
    return Observed(tensor.amin(axes).numpy(), tensor.amax(axes).numpy(), mean, square, np.full(1, len(tensor)))


def _merge(parts: Sequence[Observed]) -> Observed:
    images = sum(int(part.counts[0]) for part in parts)
    return Observed(
        np.min([part.low for part in parts], axis=0),
        np.max([part.high for part in parts], axis=0),
        np.sum([part.mean for part in parts], axis=0) / images,
        np.sum([part.square for part in parts], axis=0) / images,
        np.zeros(_BINS, dtype=np.int64),
    )


def _percentile(one: Observed, percent: float) -> Range:
    low, high = one.extremes
    share = np.cumsum(one.counts) / one.counts.sum()
    edges = np.linspace(low, high, _BINS + 1)
    tail = (1 - percent / 100) / 2
    first, last = int(np.searchsorted(share, tail)), int(np.searchsorted(share, 1 - tail))
    return float(edges[first]), float(edges[min(last + 1, _BINS)])


def _least_error(one: Observed) -> Range:
    low, high = one.extremes
    centers = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
    lows = sorted({min(low * share, 0.0) for share in (_SHARES[::2] if low < 0 else (1.0,))})
    tried = [(a, max(high * share, 0.0)) for a in lows for share in _SHARES]
    return min(
        (span for span in tried if span[1] > span[0]),
        key=lambda span: _error(centers, one.counts, span),
        default=(low, high),
    )


def _error(centers: Array, counts: Array, span: Range) -> float:
    scale, zero = quantization(span)
    rounded = (np.clip(np.round(centers / scale) + zero, 0, 255) - zero) * scale
    return float((counts * np.square(rounded - centers)).sum())
