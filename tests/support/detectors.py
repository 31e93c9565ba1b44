"""A small object detector."""

from __future__ import annotations

import torch


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
