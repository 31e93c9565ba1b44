"""A small text classifier."""

from __future__ import annotations

import torch

WORDS = ["<unk>", "good", "bad", "film", "good film", "bad film", "do", "not", "do not", "naive"]


LABELS = {"0": "World", "1": "Sports", "2": "Sci/Tech"}


class BagOfWords(torch.nn.Module):
    """The model of TorchServe's own text classification example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = torch.nn.EmbeddingBag(len(WORDS), 8)
        self.fc = torch.nn.Linear(8, len(LABELS))

    def forward(self, text: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        return self.fc(self.embedding(text, offsets))
