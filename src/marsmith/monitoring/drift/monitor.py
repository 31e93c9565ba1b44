"""Follows the observations of one version: collects its baseline, and judges the windows after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from marsmith.monitoring.drift.baseline import (
    LEAST_WINDOWS,
    WEEK_S,
    against_baseline,
    against_reference,
    collect,
    completed,
)
from marsmith.monitoring.drift.state import DriftState
from marsmith.monitoring.drift.windows import Window, WindowCutter
from marsmith.predictions.observations import Observation
from marsmith.statistics import DriftRule, Sketch

Period = tuple[float, float]


class DriftMonitor:
    """Takes in observations in the order of the log.

    Attributes:
        state: what is known until now.
        rule: says when a window is full, and when it is reported.
    """

    def __init__(
        self,
        state: DriftState,
        rule: DriftRule,
        *,
        reference: Mapping[str, Sketch] | None = None,
        period: Period | None = None,
        block_s: float = 1.0,
    ) -> None:
        """Go on from a state.

        Args:
            state: what is known; a new one has model and version only.
            rule: says when a window is full, and when it is reported.
            reference: sketches of the archive's reference by statistic; None if it has none.
            period: begin and end of the baseline, in seconds since the epoch; None: the first week.
            block_s: of this time, in seconds, one observation counts.
        """
        self.state = state
        self.rule, self._period = rule, period
        self._reference = dict(reference) if reference else None
        self._block_s = block_s
        self._cutter = WindowCutter(rule, block_s)

    @property
    def has_reference(self) -> bool:
        """Whether the version's archive has a reference."""
        return self._reference is not None

    @property
    def is_period_named(self) -> bool:
        """Whether the period of the baseline was named."""
        return self._period is not None

    @property
    def waiting(self) -> int:
        """Observations of the window that is not full yet."""
        return self._cutter.waiting

    def add(self, observation: Observation) -> bool:
        """Take in an observation; return whether it has completed a window."""
        if observation.time <= self.state.until or not self._is_wanted(observation.time):
            return False
        window = self._cutter.add(observation)
        if window is None:
            return False
        self._judge(window)
        self.state = replace(self.state, until=window.end)
        return True

    def finish(self) -> None:
        """End the baseline if its period is over: nothing follows in the log."""
        if self._period and self._collects:
            self._end_baseline()

    def _is_wanted(self, time_s: float) -> bool:
        """Return whether an observation of this time counts; the first one after a named period ends the baseline."""
        if not self._period or not self._collects:
            return True
        begin, end = self._period
        if begin <= time_s <= end:
            return True
        if time_s > end and self.state.seen:
            self._end_baseline()
            # What is left of the period is no window, and belongs to none of the later ones.
            self._cutter = WindowCutter(self.rule, self._block_s)
        return not self._collects

    @property
    def _collects(self) -> bool:
        return self.state.baseline is None

    def _judge(self, window: Window) -> None:
        state = self.state
        if self._reference and state.skew is None:
            state = replace(state, skew=against_reference(window, self._reference, self.rule))
        if state.baseline is not None:
            self.state = state.judged(against_baseline(window, state.baseline, self.rule))
            return
        self.state = collect(state, window)
        if not self._period and window.end - self.state.began >= WEEK_S and self.state.seen >= LEAST_WINDOWS:
            self.state = completed(self.state, window.end)

    def _end_baseline(self) -> None:
        """End a period that was named; with too few windows there is no baseline, and nothing is judged."""
        if self.state.seen >= LEAST_WINDOWS:
            self.state = completed(self.state, self.state.until)
