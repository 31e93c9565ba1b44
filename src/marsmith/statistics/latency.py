"""The latency above which a request counts as slow."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Few, because a slow version is not found before the limit is known. Then the limit is the second largest value.
LEAST_ANSWERS = 200


def latency_limit_ms(answers_ms: Sequence[float], quantile: float = 0.99) -> float | None:
    """Return a quantile of the stable version's latencies, in milliseconds.

    This is the limit where the spec states none. A request above it is an event of the kind ``slow``. The limit is the
    same for both versions, so an inexact one makes the test slower and never wrong.

    Args:
        answers_ms: latencies of answered requests, in milliseconds.
        quantile: above 0 and below 1.

    Returns:
        None with fewer than ``LEAST_ANSWERS`` answers.
    """
    if len(answers_ms) < LEAST_ANSWERS:
        return None
    return sorted(answers_ms)[math.ceil(quantile * len(answers_ms)) - 1]
