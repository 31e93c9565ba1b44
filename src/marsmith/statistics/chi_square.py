"""The chi-square distribution, by sums that end: degrees of freedom are whole numbers here."""

from __future__ import annotations

import math

_STEPS = 100
# The rest of a Poisson distribution beyond so many standard deviations is below 1e-15.
_DEVIATIONS = 9.0


def survival(value: float, degrees: int) -> float:
    """Return the probability that a chi-square variable is larger than ``value``; 1 with 0 degrees of freedom.

    Source: Abramowitz and Stegun, "Handbook of Mathematical Functions", 26.4.4 and 26.4.5.
    """
    if degrees < 1 or value <= 0:
        return 1.0
    half = value / 2
    if degrees % 2:
        total, order = math.erfc(math.sqrt(half)), 0.5
    else:
        total, order = math.exp(-half), 1.0
    while order < degrees / 2:
        # In logarithms, since both factors leave the range of a float long before their product does.
        total += math.exp(order * math.log(half) - half - math.lgamma(order + 1))
        order += 1
    return min(total, 1.0)


def noncentral_survival(value: float, degrees: int, noncentrality: float) -> float:
    """Return the probability that a noncentral chi-square variable is larger than ``value``.

    Source: Abramowitz and Stegun, 26.4.25, a Poisson mixture.
    """
    if degrees < 1 or noncentrality <= 0:
        return survival(value, degrees)
    mean = noncentrality / 2
    width = _DEVIATIONS * math.sqrt(mean) + _DEVIATIONS
    first, last = max(0, math.floor(mean - width)), math.ceil(mean + width)
    half, order, total = value / 2, degrees / 2 + first, 0.0
    tail = survival(value, degrees + 2 * first)
    for number in range(first, last):
        total += tail * math.exp(number * math.log(mean) - mean - math.lgamma(number + 1))
        tail += math.exp(order * math.log(half) - half - math.lgamma(order + 1)) if half > 0 else 0.0
        order += 1
    return min(total, 1.0)


def quantile(probability: float, degrees: int) -> float:
    """Return the value that a chi-square variable exceeds with this probability, above 0 and below 1."""
    low, high = 0.0, 1.0
    while survival(high, degrees) > probability:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if survival(middle, degrees) > probability else (low, middle)
    return high
