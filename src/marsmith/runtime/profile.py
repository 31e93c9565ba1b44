"""Time of batches by stage, measured by the worker and by the runner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from marsmith.runtime.worker_protocol import WorkerMetric

_TO_MS = {"seconds": 1000.0, "milliseconds": 1.0, "ms": 1.0, "s": 1000.0}
# Names for TorchServe's own measurements.
_KNOWN = {"PredictionTime": "handler, batch", "HandlerTime": "handler, its own clock"}
_WHOLE = "batch, with the worker's protocol"


@dataclass(frozen=True)
class StageTime:
    """One stage over all batches.

    Attributes:
        stage: name of the stage.
        count: number of measurements.
        total_ms: sum of the measurements, in milliseconds.
    """

    stage: str
    count: int
    total_ms: float

    @property
    def mean_ms(self) -> float:
        """Mean of one measurement, in milliseconds."""
        return self.total_ms / self.count


class Profile:
    """Sums up the times of batches."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = {}

    def add(self, batch_ms: float, metrics: Iterable[WorkerMetric]) -> None:
        """Add one batch: the time seen by the runner, in milliseconds, and the measurements of the worker."""
        for metric in metrics:
            factor = _TO_MS.get(metric.unit.lower())
            if factor is not None:
                self._times.setdefault(_stage(metric.name), []).append(metric.value * factor)
        self._times.setdefault(_WHOLE, []).append(batch_ms)

    def rows(self) -> list[StageTime]:
        """Return the stages of the handler in its order, then the whole batch."""
        order = sorted(self._times, key=lambda stage: stage == _WHOLE)
        return [StageTime(stage, len(self._times[stage]), sum(self._times[stage])) for stage in order]


def _stage(metric: str) -> str:
    return _KNOWN.get(metric, metric.removeprefix("marsmith_").removesuffix("_seconds"))
