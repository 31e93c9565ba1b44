"""Object detection: a request is an image, a reply is ``[{label: [x1, y1, x2, y2], "score": s}, ...]``.

The serialized file takes a list of float32 images (3, H, W), RGB, 0 to 1, each of its own size. It gives for each
``boxes`` (K, 4) in pixels, ``labels`` (K,) and ``scores`` (K,), as torchvision's detectors do. Scripted detectors of
torchvision return their losses first. Settings, in the block ``handler`` of model-config.yaml: ``threshold`` (minimum
score of a reply), ``labels``, ``max_image_pixels``, ``max_request_pixels`` (of all images of a request).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from marsmith_handler.base import BaseHandler
from marsmith_handler.image.decoding import decode_whole_image
from marsmith_handler.image.handler import check_pixels, watch_picture
from marsmith_handler.labels import read_labels
from marsmith_handler.request import Request

# Smaller than for classifiers: images are not resized before the model, and a pixel takes 12 bytes there.
MAX_PIXELS = 12_500_000
WARM_UP_SIZE = (480, 640)

Detections = dict[str, torch.Tensor]


class ObjectDetectorHandler(BaseHandler):
    """Finds objects in images: raw, in a form, as base64 in JSON, one or several in a request."""

    def load(self) -> None:
        """Load the model, the settings and the names of the classes."""
        super().load()
        self.threshold = float(self.config.get("threshold", 0.5))
        self.max_pixels = int(self.config.get("max_image_pixels", MAX_PIXELS))
        most = max(MAX_PIXELS, self.max_pixels)
        self.max_request_pixels = int(self.config.get("max_request_pixels", most))
        self.labels = read_labels(self.folder / str(self.config.get("labels", "index_to_name.json")))

    def warm_up_item(self) -> torch.Tensor:
        """Return a grey image."""
        return torch.full((3, *WARM_UP_SIZE), 127, dtype=torch.uint8)

    def check_together(self, requests: Sequence[Request]) -> None:
        """Refuse images that have too many pixels together."""
        check_pixels(requests, max_pixels=self.max_pixels, together=self.max_request_pixels)

    def decode(self, request: Request) -> torch.Tensor:
        """Decode an image to uint8 (3, H, W), RGB, upright, in its own size."""
        return decode_whole_image(request.as_bytes(), max_pixels=self.max_pixels)

    def infer(self, items: list[torch.Tensor]) -> list[Detections]:
        """Return ``boxes``, ``labels`` and ``scores`` of the objects in each image."""
        images = [item.to(self.device).to(torch.float32).div_(255) for item in items]
        output = self.model(images)
        detections = output[1] if isinstance(output, tuple) else output
        return [{name: values.cpu() for name, values in one.items()} for one in detections]

    def encode(self, result: Detections, request: Request) -> list[dict[str, Any]]:  # noqa: ARG002
        """Return the objects whose score reaches the threshold, in the model's order: best first in torchvision's."""
        kept = result["scores"] >= self.threshold
        boxes, classes, scores = (result[name][kept].tolist() for name in ("boxes", "labels", "scores"))
        return [
            {self._label(index): box, "score": score} for index, box, score in zip(classes, boxes, scores, strict=True)
        ]

    def watch(self, request: Request, item: torch.Tensor, reply: list[dict[str, Any]]) -> Mapping[str, float | str]:
        """Describe the picture, the number of objects, and the best one."""
        best = max(reply, key=lambda one: one["score"], default=None)
        found = {**watch_picture(request, item), "objects": float(len(reply))}
        if best is None:
            return {**found, "class": "none"}
        return {**found, "class": next(name for name in best if name != "score"), "confidence": best["score"]}

    def _label(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)
