"""A small text embedding model."""

from __future__ import annotations

import torch

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##aff",
    "##able",
    "##a",
    "a",
    "cafe",
    "!",
    "$",
    "東",
    "京",
    "[",
    "]",
]


class MeanNumber(torch.nn.Module):
    """Embeds a text as the mean of its numbers, and their count."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        count = mask.sum(dim=1)
        return torch.stack([(tokens * mask).sum(dim=1) / count, count.to(torch.float32)], dim=1)
