"""Whether a window of observations differs from a reference, in significance and in size.

Two conditions must hold, because each alone is wrong. A test alone finds any difference if there are enough
observations. A distance alone finds one in the noise if there are few.

Observations of traffic are not independent: photos come in bursts, and nights differ from days. A baseline shows both.
Chi-square is divided by what bursts enlarge it by (the largest design effect in J. N. K. Rao and A. J. Scott, "The
Analysis of Categorical Data from Complex Sample Surveys", Journal of the American Statistical Association 76, 1981).
The null hypothesis is then that a window differs from the baseline no more than the baseline's own windows do: a
noncentral chi-square distribution (K. R. Murphy and B. Myors, "Testing the Hypothesis That Treatments Have Negligible
Effects", Journal of Applied Psychology 84, 1999).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from marsmith.statistics.chi_square import noncentral_survival, quantile
from marsmith.statistics.sketch import Counts, NumberSketch, Sketch, Value, binned

YEAR_S = 365 * 86_400.0
# Expected number in the smaller sample below which bins are merged (W. G. Cochran, Biometrics 10, 1954).
_LEAST_EXPECTED = 5.0
# Consecutive observations in a batch: more than a burst leaves after thinning.
_BATCH = 50
# Probability that the windows of a baseline without nights and days have any variation.
_CHANCE = 0.05
# The most different window of a baseline is not the most different one of a year.
_MARGIN = 1.5
# Standard errors above 1 at which an inflation counts.
_CLEARLY = 3.0


@dataclass(frozen=True)
class DriftRule:
    """When a window is reported.

    Attributes:
        window: smallest number of thinned observations in a window.
        window_s: shortest time of a window, in seconds: so many windows a year there are at most.
        tolerance: largest total variation distance, 0 to 1, that is never reported.
        false_alarms: expected number a year, over all statistics, without a change; a quarter, so that a year with one
            is rare.
    """

    window: int = 1000
    window_s: float = 3600.0
    tolerance: float = 0.1
    false_alarms: float = 0.25

    def level(self, statistics: int) -> float:
        """Return the largest p-value that is significant, for one of so many statistics."""
        return min(self.false_alarms / (max(statistics, 1) * YEAR_S / self.window_s), 0.05)


@dataclass(frozen=True)
class Calibration:
    """What windows of one statistic differ by without a change.

    Attributes:
        spread: by how much bursts within a window enlarge chi-square; at least 1.
        variation: noncentrality of chi-square, for each unit of ``Difference.size``, that windows have because nights
            differ from days; at least 0.
    """

    spread: float = 1.0
    variation: float = 0.0


@dataclass(frozen=True)
class Difference:
    """The difference of two samples.

    Attributes:
        chi_square: statistic of the two-sample test on their bins.
        degrees: its degrees of freedom; 0 if there is nothing to compare.
        distance: total variation distance: the share of observations, 0 to 1, that would have to be others.
        size: size of both samples together as the test counts it: half of their harmonic mean.
    """

    chi_square: float
    degrees: int
    distance: float
    size: float

    def p_value(self, calibration: Calibration) -> float:
        """Return the probability of a statistic at least as large without a change."""
        noncentrality = calibration.variation * self.size
        return noncentral_survival(self.chi_square / calibration.spread, self.degrees, noncentrality)


def difference(window: Counts, reference: Counts) -> Difference:
    """Compare two samples in the same bins; sparse bins are merged with the next ones.

    Method: two-sample chi-square test for unequal sizes (W. H. Press et al., "Numerical Recipes", 14.3). Which bins
    are merged depends on their sums over both samples only, so the distribution stays the one without a change.
    """
    n, m = sum(window), sum(reference)
    if not n or not m:
        return Difference(0.0, 0, 0.0, 0.0)
    least = _LEAST_EXPECTED * (n + m) / min(n, m)
    cells: list[tuple[int, int]] = []
    ours_rest = theirs_rest = 0
    for a, b in zip(window, reference, strict=True):
        ours_rest, theirs_rest = ours_rest + a, theirs_rest + b
        if ours_rest + theirs_rest >= least:
            cells.append((ours_rest, theirs_rest))
            ours_rest = theirs_rest = 0
    if cells and ours_rest + theirs_rest:
        last = cells.pop()
        cells.append((last[0] + ours_rest, last[1] + theirs_rest))
    ours, theirs = math.sqrt(m / n), math.sqrt(n / m)
    chi_square = sum((ours * a - theirs * b) ** 2 / (a + b) for a, b in cells)
    return Difference(
        chi_square, max(len(cells) - 1, 0), sum(abs(a / n - b / m) for a, b in cells) / 2, n * m / (n + m)
    )


def calibrated(sketch: Sketch, windows: Sequence[Sequence[Value]]) -> Calibration:
    """Return what the windows of a baseline differ by without a change.

    Args:
        sketch: bins.
        windows: values of each window, in the order of time.
    """
    spread = burst_inflation(sketch, windows)
    counts = [binned(sketch, window) for window in windows]
    total = tuple(map(sum, zip(*counts, strict=True)))
    level = _CHANCE / max(len(windows), 1)
    variation = 0.0
    for each in counts:
        found = difference(each, tuple(t - own for t, own in zip(total, each, strict=True)))
        if found.degrees:
            excess = found.chi_square / spread - quantile(level, found.degrees)
            variation = max(variation, _MARGIN * excess / found.size)
    return Calibration(spread, variation)


def burst_inflation(sketch: Sketch, windows: Sequence[Sequence[Value]]) -> float:
    """Return how much larger the variance of means is than for independent observations; 1 if not clearly larger.

    Method: batch means within each window, so that slow changes from window to window do not count. A chi-square
    statistic is at most so many times larger if no other direction in the bins is inflated more.
    """
    places = [sketch.places(window) for window in windows]
    if isinstance(sketch, NumberSketch):
        scores = [places]
    else:
        scores = [[[int(place == name) for place in window] for window in places] for name in range(len(sketch.names))]
    return max((_inflation(each) for each in scores), default=1.0)


def _inflation(windows: Sequence[Sequence[float]]) -> float:
    """Return the inflation of the mean of one score."""
    between = within = 0.0
    batches = observations = 0
    for window in windows:
        count = len(window) // _BATCH
        used = window[: count * _BATCH]
        if count < 2:
            continue
        mean = sum(used) / len(used)
        means = [sum(used[start : start + _BATCH]) / _BATCH for start in range(0, len(used), _BATCH)]
        between += _BATCH * sum((each - mean) ** 2 for each in means)
        within += sum((each - mean) ** 2 for each in used)
        batches, observations = batches + count - 1, observations + len(used) - 1
    if not batches or not within:
        return 1.0
    ratio = (between / batches) / (within / observations)
    return ratio if ratio > 1 + _CLEARLY * math.sqrt(2 / batches) else 1.0


@dataclass(frozen=True)
class Verdict:
    """What a window says about one statistic.

    Attributes:
        observations: number of values in the window.
        p_value: probability of a difference at least as large without a change, given the spread.
        distance: total variation distance, 0 to 1.
        differs: whether both are beyond their limits.
    """

    observations: int
    p_value: float
    distance: float
    differs: bool


def judge(window: Counts, reference: Counts, rule: DriftRule, level: float, calibration: Calibration) -> Verdict:
    """Decide whether a window differs from a reference, of which both have the same bins."""
    found = difference(window, reference)
    p_value = found.p_value(calibration)
    return Verdict(sum(window), p_value, found.distance, p_value < level and found.distance > rule.tolerance)
