"""Traffic in simulation, window by window, judged as ``marsmith drift`` judges it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marsmith.statistics import Calibration, Counts, DriftRule, NumberSketch, Thinning, Verdict, calibrated, judge

Floats = npt.NDArray[np.float64]
# Statistics of an image classifier: class, confidence, entropy, margin, brightness, contrast, blur, sizes, status.
STATISTICS = 12
WINDOWS_A_YEAR = 8760
# Windows of a baseline week that are kept, as ``marsmith.monitoring`` keeps them.
BASELINE_WINDOWS = 32
# Values of the window that begins at this hour.
Draw = Callable[[np.random.Generator, float], Floats]


@dataclass(frozen=True)
class Baseline:
    """One statistic's baseline.

    Attributes:
        values: of all its windows.
        sketch: their bins.
        calibration: by its windows.
    """

    values: Floats
    sketch: NumberSketch
    calibration: Calibration

    @classmethod
    def drawn(cls, draw: Draw, random: np.random.Generator, windows: int) -> Baseline:
        """Draw windows at hours of a week."""
        hours = np.sort(random.choice(24 * 7, windows, replace=False))
        drawn = [draw(random, float(hour)) for hour in hours]
        sketch = NumberSketch.of(np.concatenate(drawn).tolist())
        return cls(np.concatenate(drawn), sketch, calibrated(sketch, [values.tolist() for values in drawn]))

    def verdict(self, values: Floats, rule: DriftRule, *, calibrate: bool = True) -> Verdict:
        """Judge a window; without calibration as if its observations were independent."""
        found = self.calibration if calibrate else Calibration()
        return judge(_binned(self.sketch, values), self.sketch.counts, rule, rule.level(STATISTICS), found)


def _binned(sketch: NumberSketch, values: Floats) -> Counts:
    """Count values as ``marsmith.statistics.binned`` does, faster."""
    places = np.searchsorted(np.array(sketch.edges), values)
    return tuple(np.bincount(places, minlength=len(sketch.counts)).tolist())


def independent(size: int, shift: float = 0.0) -> Draw:
    """Return windows of independent observations, with a shift in standard deviations."""
    return lambda random, _hour: random.normal(shift, 1.0, size)


def day_and_night(size: int, swing: float = 0.3) -> Draw:
    """Return windows whose mean swings once a day by so many standard deviations to either side."""
    return lambda random, hour: random.normal(swing * math.sin(2 * math.pi * hour / 24), 1.0, size)


def bursts(size: int, *, thinned: bool, alike: int = 20, rate: float = 5.0) -> Draw:
    """Return windows of photos that come in bursts: half of the variance of a value is that of its burst.

    Args:
        size: of a window.
        thinned: whether one observation of a second counts; else all do.
        alike: photos in a burst.
        rate: photos of a burst in a second.
    """
    thinning, numbers = Thinning(), range(size * alike)
    # A burst begins ten seconds after the one before.
    times = [number // alike * 10 + number % alike / rate for number in numbers]
    kept = [number for number in numbers if not thinned or thinning.keeps(str(number), times[number])][:size]
    groups = np.array(kept) // alike

    def draw(random: np.random.Generator, _hour: float) -> Floats:
        common = random.normal(0.0, 1.0, int(groups[-1]) + 1)[groups]
        values: Floats = math.sqrt(0.5) * (common + random.normal(0.0, 1.0, size))
        return values

    return draw


def alarms(draw: Draw, rule: DriftRule, *, windows: int, seed: int, calibrate: bool = True) -> float:
    """Return the share of windows, of all statistics, that are reported without a change."""
    random, found, each = np.random.default_rng(seed), 0, max(1, windows // STATISTICS)
    for _ in range(STATISTICS):
        baseline = Baseline.drawn(draw, random, BASELINE_WINDOWS)
        for hour in range(each):
            found += baseline.verdict(draw(random, float(hour)), rule, calibrate=calibrate).differs
    return found / (each * STATISTICS)


def found_in_one_window(draw: Draw, shift: float, rule: DriftRule, *, baseline: int, runs: int, seed: int) -> float:
    """Return the share of runs in which the first window after a shift is reported.

    Args:
        draw: windows without the shift.
        shift: what is added to each value, in standard deviations.
        rule: the rule.
        baseline: number of windows in the baseline.
        runs: number of runs.
        seed: of the random numbers.
    """
    random, found = np.random.default_rng(seed), 0
    for run in range(runs):
        found += Baseline.drawn(draw, random, baseline).verdict(draw(random, run % 24) + shift, rule).differs
    return found / runs
