"""Windows of live traffic: enough thinned observations, over a long enough time."""

from __future__ import annotations

from dataclasses import dataclass, field

from marsmith.predictions.observations import Observation
from marsmith.statistics import DriftRule, Thinning, Value
from marsmith.statistics.thinning import BLOCK_S


@dataclass(frozen=True)
class Window:
    """Observations of one window.

    Attributes:
        begin: time of the first, in seconds since the epoch.
        end: time of the last.
        observations: their number.
        values: of each statistic, in the order of time.
    """

    begin: float
    end: float
    observations: int
    values: dict[str, list[Value]]


@dataclass
class WindowCutter:
    """Collects observations, in the order of the log, until a window is full.

    Attributes:
        rule: says when it is full.
        block_s: of this time, in seconds, one observation counts.
    """

    rule: DriftRule
    block_s: float = BLOCK_S
    _begin: float = 0.0
    _count: int = 0
    _values: dict[str, list[Value]] = field(default_factory=dict)
    _thinning: Thinning | None = None

    @property
    def waiting(self) -> int:
        """Observations of the window that is not full yet."""
        return self._count

    def add(self, observation: Observation) -> Window | None:
        """Add an observation; return the window that it completes."""
        thinning = self._thinning = self._thinning or Thinning(self.block_s)
        if not thinning.keeps(observation.body, observation.time):
            return None
        self._begin = self._begin or observation.time
        self._count += 1
        for name, value in observation.values.items():
            self._values.setdefault(name, []).append(value)
        if self._count < self.rule.window or observation.time - self._begin < self.rule.window_s:
            return None
        window = Window(self._begin, observation.time, self._count, self._values)
        self._begin, self._count, self._values, self._thinning = 0.0, 0, {}, None
        return window
