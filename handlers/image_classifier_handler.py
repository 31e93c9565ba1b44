"""Image classification: a request is an image, a reply is ``{label: probability, ...}`` of the ``top_k`` best classes.

The serialized file takes a uint8 batch (N, 3, H, W), RGB, and gives float32 probabilities (N, classes). It includes
normalisation and softmax. Settings, in the block ``handler`` of model-config.yaml: ``resize`` and ``crop`` (pixels),
``interpolation``, ``top_k``, ``labels``, ``max_image_pixels``, ``dct_scaling``.
"""

from __future__ import annotations

import torch

from marsmith_handler import devices
from marsmith_handler.image.handler import ImageHandler
from marsmith_handler.labels import read_labels
from marsmith_handler.request import Request


class ImageClassifierHandler(ImageHandler):
    """Classifies images: raw, in a form, as base64 in JSON, one or several in a request."""

    def load(self) -> None:
        """Load the model, the settings and the names of the classes."""
        super().load()
        self.top_k = int(self.config.get("top_k", 5))
        self.labels = read_labels(self.folder / str(self.config.get("labels", "index_to_name.json")))

    def infer(self, items: list[torch.Tensor]) -> list[tuple[list[float], list[int]]]:
        """Return the most probable classes of each image, best first: probabilities, and class indices."""
        probabilities = self.model(devices.stack_on(items, self.device))
        best = torch.topk(probabilities, min(self.top_k, probabilities.shape[1]), dim=1)
        return list(zip(best.values.tolist(), best.indices.tolist(), strict=True))

    def encode(self, result: tuple[list[float], list[int]], request: Request) -> dict[str, float]:  # noqa: ARG002
        """Return ``{label: probability}``, best first; of classes with one name, only the most probable."""
        reply: dict[str, float] = {}
        for probability, index in zip(*result, strict=True):
            reply.setdefault(self._label(index), probability)
        return reply

    def _label(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)
