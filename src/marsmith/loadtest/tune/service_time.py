"""How long a worker takes for a batch, by the size of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceTime:
    """Medians measured at some batch sizes; between them the time is taken to be linear.

    Attributes:
        seconds: batch size, ascending, to seconds for the batch.
    """

    seconds: Mapping[int, float]

    def __call__(self, size: int) -> float:
        """Return the time for a batch of ``size``, in seconds."""
        known = sorted(self.seconds)
        below = max((each for each in known if each <= size), default=known[0])
        above = min((each for each in known if each >= size), default=known[-1])
        if below == above or size < known[0]:
            # Beyond the largest one: as much an item as there.
            return self.seconds[below] * max(1.0, size / below)
        share = (size - below) / (above - below)
        return self.seconds[below] + share * (self.seconds[above] - self.seconds[below])

    @property
    def most_per_second(self) -> float:
        """Items a second of one worker that is never idle, at the best batch size."""
        return max(size / seconds for size, seconds in self.seconds.items())
