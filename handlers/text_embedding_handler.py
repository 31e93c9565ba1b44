"""Text embedding: a request is text, a reply is a list of numbers; similar texts have a large dot product.

The serialized file takes token numbers and their mask, both int64 (N, L). The mask is 1 for tokens and 0 for the
padding of shorter texts. It gives float32 embeddings (N, D), and includes pooling and normalisation. Settings, in
the block ``handler`` of model-config.yaml: ``vocabulary`` (file in BERT's format), ``lower_case``, ``max_tokens`` (of a
text; the rest is not read), ``max_characters`` (of a text), ``max_request_characters`` (of all texts of a request).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from marsmith_handler import watched
from marsmith_handler.base import BaseHandler
from marsmith_handler.request import Request
from marsmith_handler.text.requests import TextLimits, read_text
from marsmith_handler.text.vocabulary import read_vocabulary
from marsmith_handler.text.word_pieces import WordPieces


class TextEmbeddingHandler(BaseHandler):
    """Embeds texts: raw, in a form, in JSON, one or several in a request."""

    def load(self) -> None:
        """Load the model, the settings and the vocabulary."""
        super().load()
        vocabulary = read_vocabulary(self.folder / str(self.config.get("vocabulary", "vocab.txt")))
        self.padding = vocabulary["[PAD]"]
        self.unknown = vocabulary.get("[UNK]")
        self.max_tokens = int(self.config.get("max_tokens", 256))
        self.limits = TextLimits.of(self.config)
        lower_case = bool(self.config.get("lower_case", True))
        self.pieces = WordPieces(vocabulary, max_tokens=self.max_tokens, lower_case=lower_case)

    def warm_up_item(self) -> torch.Tensor:
        """Return the longest text."""
        return torch.full((self.max_tokens,), self.padding, dtype=torch.int64)

    def check_together(self, requests: Sequence[Request]) -> None:
        """Refuse texts that are too long together."""
        self.limits.check_together(requests)

    def decode(self, request: Request) -> torch.Tensor:
        """Return the numbers of the tokens of a text, int64 (L,)."""
        numbers = self.pieces.numbers_of(read_text(request, self.limits.characters))
        return torch.tensor(numbers, dtype=torch.int64)

    def infer(self, items: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return the embedding of each text, float32 (D,)."""
        tokens = pad_sequence(items, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(item) for item in items])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(torch.int64)
        embeddings: torch.Tensor = self.model(tokens.to(self.device), mask.to(self.device))
        return embeddings.cpu().unbind()

    def encode(self, result: torch.Tensor, request: Request) -> list[float]:  # noqa: ARG002
        """Return the embedding as a list of numbers."""
        numbers: list[float] = result.tolist()
        return numbers

    def watch(self, request: Request, item: torch.Tensor, reply: list[float]) -> Mapping[str, float | str]:
        """Describe the text, and where its embedding lies."""
        text = read_text(request, self.limits.characters)
        unknown = float((item == self.unknown).to(torch.float32).mean()) if self.unknown is not None else 0.0
        found = {"characters": float(len(text)), "tokens": float(len(item)), "unknown": unknown}
        return {**found, **watched.of_embedding(reply)}
