"""Exported graph around an eager image classifier: uint8 pixels in, probabilities out.

Without ``from __future__ import annotations``: torch.jit.script needs the types of attributes, not their text.
"""

import torch

from marsmith.export.recipes.recipe import Expects, ImagePreprocessing

_DEFAULT = Expects()


class ImageGraph(torch.nn.Module):
    """Normalise, classify, softmax; ``expects`` says which steps the classifier does itself.

    Shapes: uint8 (N, 3, H, W), RGB, values 0 to 255, to float32 (N, classes), each row summing to 1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, classifier: torch.nn.Module, preprocessing: ImagePreprocessing, expects: Expects = _DEFAULT
    ) -> None:
        super().__init__()
        self.pixels: str = expects.pixels
        self.output: str = expects.output
        self.classifier = classifier
        self.register_buffer("mean", _per_channel(preprocessing.mean))
        self.register_buffer("std", _per_channel(preprocessing.std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 (N, 3, H, W) to float32 probabilities (N, classes)."""
        if self.pixels == "uint8":
            scores = self.classifier(images)
        else:
            # Channels-last is the fastest memory format of convolutions on x86 and on tensor cores.
            pixels = images.to(torch.float32).contiguous(memory_format=torch.channels_last)
            scores = self.classifier(pixels / 255 if self.pixels == "unit" else (pixels - self.mean) / self.std)
        return scores if self.output == "probabilities" else torch.nn.functional.softmax(scores, dim=1)


def _per_channel(values: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).mul(255).reshape(1, 3, 1, 1)
