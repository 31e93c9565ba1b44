"""Interval of a rate that holds at any time: it may be looked at after each observation."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Jeffreys' prior: narrow intervals near 0 and 1, which is what agreement and accuracy come close to.
_PRIOR = 0.5
_STEPS = 60


@dataclass(frozen=True)
class RateInterval:
    """A rate with an interval.

    Attributes:
        happened: number of observations with the event.
        observations: number of observations.
        lower: lower end, 0 to 1.
        upper: upper end, 0 to 1.
        alpha: largest probability that the interval ever misses the rate.
    """

    happened: int
    observations: int
    lower: float
    upper: float
    alpha: float

    @property
    def rate(self) -> float:
        """The observed rate; NaN without observations."""
        return self.happened / self.observations if self.observations else math.nan


def rate_interval(happened: int, observations: int, alpha: float = 0.05) -> RateInterval:
    """Return the interval of a constant rate.

    Method: all rates at which the likelihood ratio of a beta mixture to them is below ``1 / alpha`` (H. Robbins,
    "Statistical Methods Related to the Law of the Iterated Logarithm", 1970).

    Args:
        happened: number of observations with the event.
        observations: number of observations.
        alpha: largest probability that any of the intervals, looked at as often as you like, misses the rate.

    Raises:
        ValueError: the counts or alpha are out of range.
    """
    if not 0 <= happened <= observations or not 0 < alpha < 1:
        raise ValueError(f"{happened} of {observations} observations at alpha {alpha} is not a rate")
    failed = observations - happened
    mixture = _log_beta(happened + _PRIOR, failed + _PRIOR) - _log_beta(_PRIOR, _PRIOR)
    lowest = mixture + math.log(alpha)
    peak = happened / observations if observations else 0.5
    lower = _edge(happened, failed, lowest, inside=peak, outside=0.0) if happened else 0.0
    upper = _edge(happened, failed, lowest, inside=peak, outside=1.0) if failed else 1.0
    return RateInterval(happened, observations, lower, upper, alpha)


def _edge(happened: int, failed: int, lowest: float, *, inside: float, outside: float) -> float:
    """Return where the log likelihood falls to ``lowest`` between its peak and one end, rounded outwards."""
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        if _log_likelihood(happened, failed, middle) > lowest:
            inside = middle
        else:
            outside = middle
    return outside


def _log_likelihood(happened: int, failed: int, rate: float) -> float:
    with_event = happened * math.log(rate) if happened else 0.0
    return with_event + (failed * math.log1p(-rate) if failed else 0.0)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
