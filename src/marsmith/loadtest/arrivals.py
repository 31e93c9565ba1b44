"""When requests are due in an open loop: they come whether or not earlier ones have been answered."""

from __future__ import annotations

import random
from typing import Literal

Kind = Literal["poisson", "constant"]


def arrivals(kind: Kind, rate: float, seconds: float, *, seed: int = 0) -> list[float]:
    """Return when requests are due, in seconds from the start, ascending, all below ``seconds``.

    Args:
        kind: ``poisson``: independent users, the gaps are exponential; ``constant``: one every 1 / rate.
        rate: mean requests per second.
        seconds: how long.
        seed: of the gaps; the same seed gives the same arrivals.
    """
    if kind == "constant":
        return [index / rate for index in range(int(rate * seconds))]
    gaps = random.Random(seed)  # noqa: S311, no secret
    due: list[float] = []
    now = gaps.expovariate(rate)
    while now < seconds:
        due.append(now)
        now += gaps.expovariate(rate)
    return due
