"""Counts of one version's answers, small enough for a file that is written every second."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Neighbouring buckets of latencies differ by this factor, so a quantile is exact to 5%.
_FACTOR = 1.1
_SHORTEST_MS = 0.01


@dataclass(frozen=True)
class Tally:
    """Answers of one version since the canary began.

    Attributes:
        answers: number of requests that it was asked first.
        failed: those that failed on it, whether or not another version answered them then.
        slow: those above the latency limit.
        refused: those answered with a status of 400 to 499.
        latencies: number of answers by bucket: the logarithm of the milliseconds to the base 1.1, rounded.
    """

    answers: int = 0
    failed: int = 0
    slow: int = 0
    refused: int = 0
    latencies: Mapping[int, int] = field(default_factory=dict)

    def with_answer(self, duration_ms: float, *, timed: bool, failed: bool, slow: bool, refused: bool) -> Tally:
        """Return these counts with one more answer; ``timed``: its latency counts."""
        bucket = round(math.log(max(duration_ms, _SHORTEST_MS), _FACTOR))
        more = {bucket: self.latencies.get(bucket, 0) + 1} if timed else {}
        return replace(
            self,
            answers=self.answers + 1,
            failed=self.failed + failed,
            slow=self.slow + slow,
            refused=self.refused + refused,
            latencies={**self.latencies, **more},
        )

    def quantile_ms(self, quantile: float) -> float | None:
        """Return a quantile of the latencies in milliseconds, exact to 5%; None without answers."""
        rank = math.ceil(quantile * sum(self.latencies.values()))
        for bucket in sorted(self.latencies):
            rank -= self.latencies[bucket]
            if rank <= 0:
                return float(_FACTOR**bucket)
        return None
