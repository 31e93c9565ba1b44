"""An eager float32 image classifier to one that computes in bfloat16 or float16 inside. Imports torch."""

from __future__ import annotations

import copy

import torch

from marsmith.errors import ExportError
from marsmith.export.image_graph import ImageGraph

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class HalfModule(torch.nn.Module):
    """A module of one tensor in half precision; what it takes and gives stays as it was, the latter float32."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype)
        self.dtype = dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Cast, run the module, cast back."""
        outputs: torch.Tensor = self.module(inputs.to(self.dtype) if inputs.is_floating_point() else inputs)
        return outputs.to(torch.float32)


def in_half_precision(graph: torch.nn.Module, precision: str) -> torch.nn.Module:
    """Return a copy of ``graph`` that computes in ``precision``.

    Args:
        graph: an eager float32 module; is left as it is.
        precision: ``bfloat16`` or ``float16``.

    Raises:
        ExportError: no such half precision, or a weight is too large for it.
    """
    dtype = DTYPES.get(precision)
    if dtype is None:
        raise ExportError(f"{precision!r} is no half precision", tip=f"one of {', '.join(DTYPES)}")
    largest = torch.finfo(dtype).max
    for name, tensor in graph.state_dict().items():
        if tensor.is_floating_point() and tensor.abs().max() > largest:
            raise ExportError(f"the weight {name} is beyond the range of {precision}", tip="use precision: bfloat16")
    if not isinstance(graph, ImageGraph):
        return HalfModule(graph, dtype).eval()
    # Normalising and the softmax stay in float32: a pixel's value fits 8 bits, its normalised value does not.
    half = copy.deepcopy(graph)
    half.classifier = HalfModule(graph.classifier, dtype)
    return half.eval()
