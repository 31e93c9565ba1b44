"""Eager module to TorchScript or to half precision, and a TorchScript file to a module. Imports torch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.crops import reference_images as reference_images
from marsmith.export.image_graph import ImageGraph


def to_torchscript(eager: torch.nn.Module, images: Sequence[torch.Tensor], method: str) -> torch.jit.ScriptModule:
    """Trace or script ``eager`` and freeze it: weights become constants and batch norms fold into convolutions.

    Raises:
        ExportError: TorchScript cannot express the module.
    """
    # Two inputs, because a batch of one would bake broadcasts of size one into the trace.
    example = torch.stack([images[0], images[-1]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            made = torch.jit.script(eager) if method == "script" else torch.jit.trace(eager, example, check_trace=False)
            frozen: torch.jit.ScriptModule = torch.jit.freeze(made.eval())
        except (
            Exception
        ) as error:  # torch raises various exceptions here, including RuntimeError and NotSupportedError.
            other = "trace" if method == "script" else "script"
            raise ExportError(
                f"TorchScript's {method} cannot express the module: {useful_line(error)}",
                tip=f"try export.method: {other} in the spec",
            ) from error
    return frozen


def load_torchscript(path: Path, device: str = "cpu") -> torch.jit.ScriptModule:
    """Load a TorchScript file for inference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)
    return module.eval()


DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class HalfModule(torch.nn.Module):
    """A module of one tensor in half precision. Its input type is unchanged; its outputs are float32."""

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
        graph: an eager float32 module; it is not changed.
        precision: ``bfloat16`` or ``float16``.

    Raises:
        ExportError: the precision is unknown, or a weight is too large for it.
    """
    dtype = DTYPES.get(precision)
    if dtype is None:
        raise ExportError(f"{precision!r} is not a half precision", tip=f"one of {', '.join(DTYPES)}")
    largest = torch.finfo(dtype).max
    for name, tensor in graph.state_dict().items():
        if tensor.is_floating_point() and tensor.abs().max() > largest:
            raise ExportError(f"the weight {name} is beyond the range of {precision}", tip="use precision: bfloat16")
    if not isinstance(graph, ImageGraph):
        return HalfModule(graph, dtype).eval()
    # Normalisation and softmax stay in float32: a pixel's value fits into 8 bits, its normalised value does not.
    half = copy.deepcopy(graph)
    half.classifier = HalfModule(graph.classifier, dtype)
    return half.eval()
