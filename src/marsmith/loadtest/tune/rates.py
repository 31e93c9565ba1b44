"""Search for the largest rate of requests at which something still holds, with few attempts.

How the tuner spends its time: how many set-ups it tries, and for how long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
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


def majority_of_three(attempt: Callable[[], Evidence | None]) -> Evidence | None:
    """Make two attempts, and a third where they disagree; return what one that held saw, if most did.

    One pause of the machine is enough to spoil a 99th percentile of some seconds, and must not decide.
    """
    first, second = attempt(), attempt()
    if (first is None) == (second is None):
        return second
    return (first or second) if attempt() is not None else None


# What a set-up costs besides its load: registering it, in seconds; torch alone takes two to import.
REGISTERING_S = 7.0
# Of a 99th percentile from fewer, the slowest request alone decides.
FEWEST_REQUESTS = 50
SHORTEST_TRIAL_S, USUAL_TRIAL_S, LONGEST_TRIAL_S = 1.0, 4.5, 15.0
# Between the turns of a trial, all of them together.
BETWEEN_TURNS_S = 1.5
LONGEST_WARM_UP_S = 8.0
VERIFYING_SHARE = 0.3
VERIFYING_RATES = 5
# Two or three for each rate, and those of the rate that was asked for.
VERIFYING_LOADS = 2.3 * (VERIFYING_RATES + 1)
LONGEST_VERIFYING_S = 20.0
FEWEST_TRIALS, MOST_TRIALS = 2, 16


@dataclass(frozen=True)
class Schedule:
    """What is done for how long, in seconds.

    Attributes:
        trials: how many set-ups are tried.
        warm_up_s: of the server, before the first.
        trial_s: of each set-up in the first round.
        verify_s: of each load that verifies the winner.
    """

    trials: int
    warm_up_s: float
    trial_s: float
    verify_s: float


def schedule(minutes: float, *, left_s: float, rate: float, setups: int) -> Schedule:
    """Share the time out.

    A slow model gets longer trials, and fewer: it needs time for as many requests.

    Args:
        minutes: that were given for everything.
        left_s: what is left of them, in seconds.
        rate: that set-ups are tried at first, in requests per second.
        setups: how many there are.
    """
    enough_s = FEWEST_REQUESTS / rate
    trial_s = min(max(0.9 * minutes, SHORTEST_TRIAL_S), USUAL_TRIAL_S)
    trial_s = min(max(trial_s, enough_s), LONGEST_TRIAL_S)
    # Halving adds about two rounds to each one's first.
    each_s = REGISTERING_S + 3 * (trial_s + BETWEEN_TURNS_S)
    trials = int(left_s * (1 - VERIFYING_SHARE) / each_s)
    return Schedule(
        trials=max(FEWEST_TRIALS, min(MOST_TRIALS, setups, trials)),
        warm_up_s=min(2 * trial_s, LONGEST_WARM_UP_S),
        trial_s=trial_s,
        verify_s=min(max(left_s * VERIFYING_SHARE / VERIFYING_LOADS, enough_s, SHORTEST_TRIAL_S), LONGEST_VERIFYING_S),
    )
