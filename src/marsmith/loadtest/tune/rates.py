"""Search for the largest rate that meets a limit, and the schedule of the tuner.

The search needs few attempts. The schedule says how many set-ups are tried, and for how long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Evidence = TypeVar("Evidence")

FIRST_STEP = 1.15
# Rates closer together than this cannot be distinguished: measurements differ by more.
CLOSE = 1.03


def largest_rate(
    attempt: Callable[[float], Evidence | None], start: float, *, steps: int
) -> tuple[float, Evidence | None]:
    """Return the largest rate that held, with the evidence for it. 0 and None if no rate held.

    From ``start`` the rate goes up or down by growing steps, until one rate holds and a larger one does not. Then the
    search continues between the two.

    Args:
        attempt: tries a rate in requests per second; returns evidence if the rate held, else None.
        start: first rate, in requests per second; the nearer to the result, the better.
        steps: maximum number of attempts.
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
    """Make two attempts, and a third if they disagree. Return the evidence of one that held, if most of them held.

    One pause of the machine can spoil a 99th percentile of a few seconds. It must not decide the result.
    """
    first, second = attempt(), attempt()
    if (first is None) == (second is None):
        return second
    return (first or second) if attempt() is not None else None


# Overhead of a set-up besides its load, in seconds: registration, where the import of torch alone takes two.
REGISTERING_S = 7.0
# A 99th percentile of fewer requests is decided by the slowest one alone.
FEWEST_REQUESTS = 50
SHORTEST_TRIAL_S, USUAL_TRIAL_S, LONGEST_TRIAL_S = 1.0, 4.5, 15.0
# Pause between the turns of a trial, all pauses together.
BETWEEN_TURNS_S = 1.5
LONGEST_WARM_UP_S = 8.0
VERIFYING_SHARE = 0.3
VERIFYING_RATES = 5
# Two or three loads for each rate, and those at the requested rate.
VERIFYING_LOADS = 2.3 * (VERIFYING_RATES + 1)
LONGEST_VERIFYING_S = 20.0
FEWEST_TRIALS, MOST_TRIALS = 2, 16


@dataclass(frozen=True)
class Schedule:
    """Durations, in seconds.

    Attributes:
        trials: number of set-ups to try.
        warm_up_s: warm-up of the server, before the first trial.
        trial_s: each set-up in the first round.
        verify_s: each load that verifies the winner.
    """

    trials: int
    warm_up_s: float
    trial_s: float
    verify_s: float


def schedule(minutes: float, *, left_s: float, rate: float, setups: int) -> Schedule:
    """Divide the time among warm-up, trials and verification.

    A slow model gets fewer and longer trials, because it needs more time for the same number of requests.

    Args:
        minutes: total time limit, in minutes.
        left_s: remaining time, in seconds.
        rate: rate of the first trials, in requests per second.
        setups: number of set-ups to choose from.
    """
    enough_s = FEWEST_REQUESTS / rate
    trial_s = min(max(0.9 * minutes, SHORTEST_TRIAL_S), USUAL_TRIAL_S)
    trial_s = min(max(trial_s, enough_s), LONGEST_TRIAL_S)
    # Halving adds about two rounds to the first.
    each_s = REGISTERING_S + 3 * (trial_s + BETWEEN_TURNS_S)
    trials = int(left_s * (1 - VERIFYING_SHARE) / each_s)
    return Schedule(
        trials=max(FEWEST_TRIALS, min(MOST_TRIALS, setups, trials)),
        warm_up_s=min(2 * trial_s, LONGEST_WARM_UP_S),
        trial_s=trial_s,
        verify_s=min(max(left_s * VERIFYING_SHARE / VERIFYING_LOADS, enough_s, SHORTEST_TRIAL_S), LONGEST_VERIFYING_S),
    )
