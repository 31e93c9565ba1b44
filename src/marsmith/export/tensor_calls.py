"""Calls of modules with any number of inputs and outputs: batches, flattened outputs, and comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from marsmith.errors import ExportError

# Rows computed by other kernels (another batch size has another order of sums) differ by far less.
TOLERANCE = 1e-3

Forward = Callable[..., Any]
# One row: one tensor for each input, without the batch axis.
Call = tuple[torch.Tensor, ...]


def batch_of(rows: Sequence[Call], size: int, start: int = 0) -> Call:
    """Stack ``size`` rows, starting at ``start``, cyclically if there are too few."""
    chosen = [rows[(start + place) % len(rows)] for place in range(size)]
    return tuple(torch.stack([row[number] for row in chosen]) for number in range(len(rows[0])))


def outputs_of(value: Any) -> list[torch.Tensor]:
    """Flatten the result of a module to its tensors, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if parts is None:
        raise ExportError(
            f"the module returns {type(value).__name__}, not tensors", tip="return tensors, or a dict, list or tuple"
        )
    return [tensor for part in parts for tensor in outputs_of(part)]


def close(want: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> bool:
    """Return whether the shapes are equal and no value differs by more than ``TOLERANCE``."""
    same_shapes = [one.shape for one in want] == [one.shape for one in got]
    return same_shapes and distance(want, got) <= TOLERANCE


def distance(want: Sequence[torch.Tensor], got: Sequence[torch.Tensor]) -> float:
    """Return the largest difference, as a share of the largest value. NaN is equal to NaN."""
    worst = 0.0
    for one, other in zip(want, got, strict=True):
        if one.numel():
            scale = max(1e-6, float(torch.nan_to_num(one.double()).abs().max()))
            difference = torch.nan_to_num(one.double()) - torch.nan_to_num(other.double())
            worst = max(worst, float(difference.abs().max()) / scale)
    return worst
