"""The baseline of a version: collected window by window, and then reduced to sketches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from marsmith.monitoring.drift.state import Baseline, DriftState, StatisticBaseline, StatisticVerdict, WindowVerdict
from marsmith.monitoring.drift.windows import Window
from marsmith.statistics import Calibration, Counts, DriftRule, Sketch, Value, binned, calibrated, judge, sketch_of

WEEK_S = 7 * 86_400.0
# Fewer say too little about what windows differ by.
LEAST_WINDOWS = 10
MOST_KEPT = 32


def collect(state: DriftState, window: Window) -> DriftState:
    """Return the state with one more window of the baseline; of many a uniform sample is kept (reservoir sampling)."""
    seen, kept = state.seen + 1, list(state.collected)
    if len(kept) < MOST_KEPT:
        kept.append(window)
    else:
        # The same choice whenever the same log is read.
        place = random.Random(f"{state.version} {seen}").randrange(seen)  # noqa: S311
        if place < MOST_KEPT:
            del kept[place]
            kept.append(window)
    return replace(state, seen=seen, collected=tuple(kept), began=state.began or window.begin)


def completed(state: DriftState, end: float) -> DriftState:
    """Return the state with the baseline of its collected windows, which it needs no longer; there is at least one.

    Args:
        state: what is known.
        end: of the last window of the baseline, in seconds since the epoch.
    """
    windows = state.collected
    names = sorted({name for window in windows for name in window.values})
    statistics = {name: _statistic([window.values.get(name, []) for window in windows]) for name in names}
    observations = sum(window.observations for window in windows)
    baseline = Baseline(state.began, end, state.seen, observations, statistics)
    return replace(state, baseline=baseline, collected=())


def against_baseline(window: Window, baseline: Baseline, rule: DriftRule) -> WindowVerdict:
    """Compare a window with a baseline."""
    level = rule.level(len(baseline.statistics))
    statistics = [
        _judged(name, window, one.sketch, rule, level, one.calibration) for name, one in baseline.statistics.items()
    ]
    return WindowVerdict(window.begin, window.end, window.observations, level, tuple(statistics))


def against_reference(window: Window, reference: dict[str, Sketch], rule: DriftRule) -> WindowVerdict:
    """Compare a window with an archive's reference, whose observations are independent; only the window has bursts."""
    level = rule.level(len(reference))
    statistics = []
    for name, sketch in reference.items():
        bursts = Calibration(calibrated(sketch, [window.values.get(name, [])]).spread)
        statistics.append(_judged(name, window, sketch, rule, level, bursts))
    return WindowVerdict(window.begin, window.end, window.observations, level, tuple(statistics))


def _statistic(windows: Sequence[Sequence[Value]]) -> StatisticBaseline:
    sketch = sketch_of([value for window in windows for value in window])
    return StatisticBaseline(sketch, calibrated(sketch, [window for window in windows if window]))


def _judged(
    name: str, window: Window, sketch: Sketch, rule: DriftRule, level: float, calibration: Calibration
) -> StatisticVerdict:
    counts: Counts = binned(sketch, window.values.get(name, []))
    found = judge(counts, sketch.counts, rule, level, calibration)
    return StatisticVerdict(name, found.observations, found.distance, found.p_value, found.differs, counts)
