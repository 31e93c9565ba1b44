"""An eager module to a torch.export program with a dynamic batch: what ONNX and AOTInductor files are made from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from marsmith.error_text import typed_line, useful_line
from marsmith.errors import ExportError

BATCH = "N"
_MADE = TypeVar("_MADE")


def to_program(
    graph: torch.nn.Module, images: Sequence[torch.Tensor], device: str = "cpu"
) -> torch.export.ExportedProgram:
    """Export ``graph`` with a dynamic first dimension.

    Args:
        graph: takes a batch of what ``images`` holds.
        images: tensors of one shape and dtype, at least one.
        device: where it is exported, and will run.

    Raises:
        ExportError: torch.export cannot express the module, or the module fixes the batch size.
    """
    # Two inputs: torch.export takes a dimension of size one for a constant.
    example = torch.stack([images[0], images[-1]]).to(device)
    batch = torch.export.Dim(BATCH, min=1)

    placed = graph if device == "cpu" else copy.deepcopy(graph).to(device)

    def export() -> torch.export.ExportedProgram:
        return torch.export.export(placed, (example,), dynamic_shapes=({0: batch},))

    try:
        return quietly(export)
    except Exception as error:  # torch raises what it likes here, its own UserError and RuntimeError among it
        raise _explain(error) from error


def quietly(make: Callable[[], _MADE]) -> _MADE:
    """Call ``make`` without gradients, and without the warnings that torch's exporters give about themselves."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return make()


def _explain(error: Exception) -> ExportError:
    text = str(error)
    if "Constraints violated" in text or "specialized" in text:
        return ExportError(
            f"the module fixes the batch size: {useful_line(error)}",
            tip="take sizes from the input (images.shape[0]) instead of writing them down, or use format: torchscript",
        )
    return ExportError(
        f"torch.export cannot express the module: {typed_line(error)}",
        tip="use format: torchscript, with method: script where the control flow depends on the data",
    )
