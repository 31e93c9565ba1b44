"""An image classifier of an archive as a module of tensors: checked, and wrapped for export. Imports torch."""

from __future__ import annotations

import torch

from marsmith.error_text import typed_line
from marsmith.errors import ExportError


class ImageModule(torch.nn.Module):
    """The module, in channels-last: what convolutions on x86 are fastest in."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 (N, 3, H, W) to what the module gives."""
        outputs: torch.Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return outputs


class Probabilities(torch.nn.Module):
    """The module with a softmax: limits and int8's search are about probabilities."""

    def __init__(self, module: torch.nn.Module, *, needed: bool) -> None:
        super().__init__()
        self.module = module
        self.needed = needed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map what the module takes to probabilities (N, classes)."""
        outputs: torch.Tensor = self.module(images)
        return outputs.softmax(1) if self.needed else outputs


def check_classifier(module: torch.nn.Module, image: torch.Tensor, name: str) -> int:
    """Return how many classes an image classifier knows.

    Args:
        module: float32 (N, 3, H, W) to (N, classes).
        image: float32 (3, H, W).
        name: of its file.

    Raises:
        ExportError: it is none; with what it gives.
    """
    batch = torch.stack([image, image.flip(-1), image.flip(-2)])
    taken = f"float32 {tuple(batch.shape)}"
    try:
        with torch.inference_mode():
            outputs = module(batch)
    except RuntimeError as error:
        raise ExportError(f"{name} is no image classifier: it does not take {taken}: {typed_line(error)}") from error
    if not isinstance(outputs, torch.Tensor):
        raise ExportError(f"{name} is no image classifier: for {taken} it gives a {type(outputs).__name__}, no tensor")
    if outputs.ndim != 2 or len(outputs) != len(batch) or outputs.dtype != torch.float32:
        seen = f"{str(outputs.dtype).removeprefix('torch.')} {tuple(outputs.shape)}"
        raise ExportError(f"{name} is no image classifier: for {taken} it gives {seen}, not float32 (3, classes)")
    return int(outputs.shape[1])
