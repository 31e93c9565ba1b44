"""Sketches of distributions: a few bins with their counts, of numbers or of classes.

A sketch is made from a reference, and later observations are counted in its bins. It holds no single observation.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

BINS = 20
# Longest name of a class, in characters; a sketch is a part of archives and state files.
_LONGEST_NAME = 200

Value = float | str
Counts = tuple[int, ...]


@dataclass(frozen=True)
class NumberSketch:
    """Bins of numbers.

    Attributes:
        edges: rising, at most 19; bin ``i`` has the numbers above edge ``i - 1`` and up to edge ``i``.
        counts: of the reference, one more than edges.
    """

    edges: tuple[float, ...]
    counts: Counts

    @classmethod
    def of(cls, values: Iterable[float]) -> NumberSketch:
        """Return bins with about equal counts; a number that fills a bin by itself has a bin of its own."""
        ordered = sorted(values)
        last = len(ordered) - 1
        inner = [ordered[min(math.ceil(i * len(ordered) / BINS) - 1, last)] for i in range(1, BINS)] if ordered else []
        repeated = (value for value, count in Counter(inner).items() if count > 1)
        edges = tuple(sorted({*inner, *(math.nextafter(value, -math.inf) for value in repeated)}))
        return cls(edges, _counted(cls(edges, ()).places(ordered), len(edges) + 1))

    def places(self, values: Iterable[Value]) -> list[int]:
        """Return the bin of each number; what is not a number is left out."""
        return [bisect_left(self.edges, value) for value in values if not isinstance(value, str)]

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each bin."""
        if not self.edges:
            return ("all",)
        inner = (f"{low:.4g} to {high:.4g}" for low, high in pairwise(self.edges))
        return (f"to {self.edges[0]:.4g}", *inner, f"above {self.edges[-1]:.4g}")


@dataclass(frozen=True)
class ClassSketch:
    """Bins of classes: one for each frequent class; the others share bins by a hash of their names.

    The hash makes rare and unknown classes count without their names, in bounded size.

    Attributes:
        names: classes with at least a twentieth of the reference, most frequent first.
        counts: of the names, then of the shared bins.
    """

    names: tuple[str, ...]
    counts: Counts

    @classmethod
    def of(cls, values: Iterable[str]) -> ClassSketch:
        """Return the bins of a reference."""
        found = Counter(value[:_LONGEST_NAME] for value in values)
        ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
        names = tuple(name for name, count in ordered if count * BINS >= found.total())
        return cls(names, _counted(cls(names, ()).places(found.elements()), len(names) + BINS))

    def places(self, values: Iterable[Value]) -> list[int]:
        """Return the bin of each class; what is not a text is left out."""
        known = {name: place for place, name in enumerate(self.names)}
        texts = (value[:_LONGEST_NAME] for value in values if isinstance(value, str))
        return [known[text] if text in known else len(known) + _shared_bin(text) for text in texts]

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each bin."""
        return (*self.names, *(f"others {number}" for number in range(1, BINS + 1)))


Sketch = NumberSketch | ClassSketch


def binned(sketch: Sketch, values: Iterable[Value]) -> Counts:
    """Count values in the bins of a sketch; what is of the other kind is left out."""
    return _counted(sketch.places(values), len(sketch.counts))


def sketch_of(values: Sequence[Value]) -> Sketch:
    """Return the sketch of numbers, or of classes if the first value is a text."""
    texts = [value for value in values if isinstance(value, str)]
    if values and isinstance(values[0], str):
        return ClassSketch.of(texts)
    return NumberSketch.of(value for value in values if not isinstance(value, str))


def _counted(places: Iterable[int], bins: int) -> Counts:
    found = Counter(places)
    return tuple(found[place] for place in range(bins))


def _shared_bin(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=8, person=b"class-sketch")
    return int.from_bytes(digest.digest(), "big") % BINS
