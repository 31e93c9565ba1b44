"""Search for the largest rate of requests at which something still holds, with few attempts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

Evidence = TypeVar("Evidence")

FIRST_STEP = 1.15
# Closer together than this, rates cannot be told apart: measurements differ by more.
CLOSE = 1.03


def largest_rate(
    attempt: Callable[[float], Evidence | None], start: float, *, steps: int
) -> tuple[float, Evidence | None]:
    """Return the largest rate that held, with what was seen at it; 0 and None where none did.

    From ``start`` it goes up or down by steps that grow, until one rate holds and a larger one does not; then between
    the two.

    Args:
        attempt: tries so many requests per second; returns what it saw where they held, else None.
        start: where to look first, in requests per second; the nearer, the better the answer.
        steps: most attempts.
    """
    low, high, held = 0.0, math.inf, None
    rate, step = start, FIRST_STEP
    for _ in range(steps):
        seen = attempt(rate)
        if seen is None:
            high = rate
        else:
            low, held = rate, seen
        if high < CLOSE * low:
            break
        if low and high < math.inf:
            rate = math.sqrt(low * high)
        else:
            rate = low * step if low else high / step
            step *= step
    return low, held


def most_of_three(attempt: Callable[[], Evidence | None]) -> Evidence | None:
    """Make two attempts, and a third where they disagree; return what one that held saw, if most did.

    One pause of the machine is enough to spoil a 99th percentile of some seconds, and must not decide.
    """
    first, second = attempt(), attempt()
    if (first is None) == (second is None):
        return second
    return (first or second) if attempt() is not None else None
