"""Counters that never fall, made from counters of processes that are restarted and begin at zero again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from marsmith.metric_names import Metric
from marsmith.monitoring.exporter.samples import Sample, Suffix

# What identifies a counter of another process: its name, and values of its labels.
Key = tuple[str, str, str, str]


class Series(NamedTuple):
    """One counter, as a part of a declared metric."""

    metric: Metric
    labels: tuple[str, ...]
    suffix: Suffix = ""
    le: str = ""


class Totals:
    """Sums of what foreign counters have grown by, by series."""

    def __init__(self) -> None:
        self._before: Mapping[Key, float] = {}
        self._totals: dict[Series, float] = {}

    def begin_at(self, counts: Mapping[Key, float]) -> None:
        """Count from these readings on, and not from zero."""
        self._before = dict(counts)

    def grow(self, counts: Mapping[Key, float], series: Callable[[Key], tuple[Series, float] | None]) -> None:
        """Add what the counters have grown by since the last reading.

        Args:
            counts: readings by the counter's own key. One below the last reading has begun at zero again.
            series: the series that a counter belongs to now, and the factor to its unit; None: it is not counted.
        """
        for key, count in counts.items():
            target = series(key)
            if target is not None:
                before = self._before.get(key, 0.0)
                growth = count - before if count >= before else count
                self._totals[target[0]] = self._totals.get(target[0], 0.0) + growth * target[1]
        self._before = dict(counts)

    def of(self, series: Series) -> float:
        """Return a total; 0 if nothing was ever counted."""
        return self._totals.get(series, 0.0)

    def at_least(self, series: Series, value: float) -> None:
        """Raise a total to this value, if it is lower."""
        self._totals[series] = max(self._totals.get(series, 0.0), value)

    def samples(self) -> Iterator[Sample]:
        """Yield every total; the buckets of a histogram in the order of their bounds."""
        for series in sorted(self._totals, key=_order):
            yield Sample(series.metric, series.labels, self._totals[series], series.suffix, series.le)


def _order(series: Series) -> tuple[str, tuple[str, ...], str, float]:
    return series.metric.name, series.labels, series.suffix, float(series.le or 0)
