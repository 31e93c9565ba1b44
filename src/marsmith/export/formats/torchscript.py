"""An eager module to TorchScript, and a TorchScript file to a module. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.crops import reference_images as reference_images


def to_torchscript(eager: torch.nn.Module, images: Sequence[torch.Tensor], method: str) -> torch.jit.ScriptModule:
    """Trace or script ``eager`` and freeze it: weights become constants and batch norms fold into convolutions.

    Raises:
        ExportError: TorchScript cannot express the module.
    """
    # Two inputs: a batch of one would bake broadcasts of size one into the trace.
    example = torch.stack([images[0], images[-1]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            made = torch.jit.script(eager) if method == "script" else torch.jit.trace(eager, example, check_trace=False)
            frozen: torch.jit.ScriptModule = torch.jit.freeze(made.eval())
        except Exception as error:  # torch raises what it likes here, RuntimeError and NotSupportedError among it
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
