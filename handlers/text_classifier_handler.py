"""Text classification: a request is English text, a reply is ``{label: probability, ...}``; for bag-of-words models.

The serialized file takes the token numbers of all texts, int64 (T,), and the offset of each text in them, int64 (N,),
as ``torch.nn.EmbeddingBag`` does. It gives logits (N, classes). Settings, in the block ``handler`` of
model-config.yaml: ``vocabulary`` (file), ``unknown`` (token for words that are not in it; if the vocabulary does not
have this token, such words are left out), ``ngrams``, ``labels``, ``max_characters`` (of a text),
``max_request_characters`` (of all texts of a request).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from marsmith_handler import watched
from marsmith_handler.base import BaseHandler
from marsmith_handler.errors import UnprocessableContent
from marsmith_handler.labels import read_labels
from marsmith_handler.request import Request
from marsmith_handler.text.english_words import ngrams_of, words_of
from marsmith_handler.text.requests import TextLimits, read_text
from marsmith_handler.text.vocabulary import read_vocabulary


class TextClassifierHandler(BaseHandler):
    """Classifies texts: raw, in a form, in JSON, one or several in a request."""

    def load(self) -> None:
        """Load the model, the settings, the vocabulary and the names of the classes."""
        super().load()
        self.vocabulary = read_vocabulary(self.folder / str(self.config.get("vocabulary", "source_vocab.pt")))
        self.unknown = self.vocabulary.get(str(self.config.get("unknown", "<unk>")))
        self.ngrams = int(self.config.get("ngrams", 2))
        self.limits = TextLimits.of(self.config)
        self.labels = read_labels(self.folder / str(self.config.get("labels", "index_to_name.json")))

    def warm_up_item(self) -> torch.Tensor:
        """Return a text of one token."""
        return torch.zeros(1, dtype=torch.int64)

    def check_together(self, requests: Sequence[Request]) -> None:
        """Refuse texts that are too long together."""
        self.limits.check_together(requests)

    def decode(self, request: Request) -> torch.Tensor:
        """Return the numbers of the tokens of a text, int64 (T,)."""
        words = words_of(read_text(request, self.limits.characters))
        numbers = [self.vocabulary.get(token, self.unknown) for token in ngrams_of(words, self.ngrams)]
        known = [number for number in numbers if number is not None]
        if not known:
            raise UnprocessableContent("the text has no word that the model knows")
        return torch.tensor(known, dtype=torch.int64)

    def infer(self, items: list[torch.Tensor]) -> list[list[float]]:
        """Return the probabilities of the classes for each text."""
        starts = list(itertools.accumulate((len(item) for item in items[:-1]), initial=0))
        logits = self.model(torch.cat(items).to(self.device), torch.tensor(starts, device=self.device))
        probabilities: list[list[float]] = torch.softmax(logits, dim=1).tolist()
        return probabilities

    def encode(self, result: list[float], request: Request) -> dict[str, float]:  # noqa: ARG002
        """Return ``{label: probability}`` of all classes, in their order."""
        return {self._label(index): probability for index, probability in enumerate(result)}

    def watch(self, request: Request, item: torch.Tensor, reply: Any) -> Mapping[str, float | str]:  # noqa: ARG002
        """Describe the text as well as the reply; ``unknown`` is the share of words without their pairs."""
        text = read_text(request, self.limits.characters)
        words = words_of(text)
        unknown = sum(word not in self.vocabulary for word in words) / max(1, len(words))
        found = {"characters": float(len(text)), "tokens": float(len(words)), "unknown": unknown}
        return {**found, **watched.of_classes(reply)}

    def _label(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)
