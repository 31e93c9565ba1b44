"""Image segmentation: a request is an image, a reply is ``[class, probability]`` of each pixel after resize and crop.

The serialized file takes a float32 batch (N, 3, H, W), RGB, normalised, and gives logits (N, classes, H, W), alone or
as ``out`` of a mapping, as torchvision's segmenters do. The reply is a JSON list (H, W, 2). With the header
``accept: application/x-npy`` it is a ``.npy`` file with the same numbers, a quarter as long. Settings, in the block
``handler`` of model-config.yaml: ``resize`` and ``crop`` (pixels), ``interpolation``, ``mean`` and ``std`` (of the
channels, 0 to 1), ``max_image_pixels``, ``max_request_pixels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from marsmith_handler import devices
from marsmith_handler.image.handler import ImageHandler
from marsmith_handler.replies import Reply
from marsmith_handler.request import Request
from marsmith_handler.tensor.formats import NPY_TYPE, write_npy

# ImageNet's: torchvision's weights are trained with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ImageSegmenterHandler(ImageHandler):
    """Classifies each pixel of images: raw, in a form, as base64 in JSON, one or several in a request."""

    def load(self) -> None:
        """Load the model and the settings."""
        super().load()
        self.mean = self._per_channel("mean", MEAN)
        self.std = self._per_channel("std", STD)

    def infer(self, items: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the most probable class of each pixel and its probability: float32 (N, H, W, 2)."""
        images = devices.stack_on(items, self.device).to(torch.float32).div_(255)
        output = self.model(images.sub_(self.mean).div_(self.std))
        logits = output["out"] if isinstance(output, dict) else output
        best = torch.softmax(logits, dim=1).max(dim=1)
        return torch.stack([best.indices.to(best.values.dtype), best.values], dim=3).cpu().unbind()

    def encode(self, result: torch.Tensor, request: Request) -> Any:
        """Return the pixels as rows of ``[class, probability]``."""
        if request.headers.get("accept", "").partition(";")[0].strip().lower() == NPY_TYPE:
            return Reply(write_npy(result.contiguous().numpy()), NPY_TYPE)
        return result.tolist()

    def _per_channel(self, key: str, default: tuple[float, float, float]) -> torch.Tensor:
        values = self.config.get(key, default)
        if len(values) != 3:
            raise RuntimeError(f"model-config.yaml, block handler: {key} is {values!r}, not three numbers")
        return torch.tensor(values, dtype=torch.float32, device=self.device).reshape(3, 1, 1)
