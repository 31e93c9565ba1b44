"""Small object detectors."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from support.vision_fixtures import wake


class Corners(torch.nn.Module):
    """Sees in each image three things in its far corner, of known scores; gives no losses, as eager detectors do."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found: list[dict[str, torch.Tensor]] = []
        for image in images:
            far = [float(image.shape[2]), float(image.shape[1])]
            boxes = torch.tensor([[0.0, 0.0, far[0], far[1]]]).repeat(3, 1)
            scores = torch.tensor([0.75, 0.5, 0.25])
            found.append({"boxes": boxes, "labels": torch.tensor([3, 1, 9]), "scores": scores})
        return found


@cache
def detector() -> torch.nn.Module:
    """A small detector with random weights; its scores for a picture lie on both sides of 0.5."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(3)
    model: Any = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5, detections_per_img=20, topk_candidates=50
    )
    wake(torch.nn.Sequential(model.backbone, Values(), model.head.classification_head))
    frozen: torch.nn.Module = model.eval()
    return frozen


class Values(torch.nn.Module):
    def forward(self, mapping: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return list(mapping.values())
