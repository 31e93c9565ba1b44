"""Follows the prediction logs of one model, and keeps a monitor of each version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from marsmith.archive import Archive
from marsmith.archive.reference import read_reference
from marsmith.config.server_config import model_store
from marsmith.errors import MarsmithError
from marsmith.monitoring.drift.monitor import DriftMonitor, Period
from marsmith.monitoring.drift.state import DriftState
from marsmith.names import archive_file_name
from marsmith.predictions import LogFollower, Prediction
from marsmith.predictions.comparable import log_of
from marsmith.predictions.files import log_file
from marsmith.predictions.observations import observation_of
from marsmith.project import Project
from marsmith.statistics import DriftRule, Sketch
from marsmith.statistics.thinning import BLOCK_S

Found = TypeVar("Found")


class ModelDrift:
    """The drift of a model's versions, from what comes to its logs.

    Attributes:
        monitors: by version, in the order in which they appeared; the one that logged last is the last.
        damaged: lines that could not be read.
        undescribed: requests without any figure, from older handlers.
    """

    def __init__(
        self,
        project: Project,
        model: str,
        logs: Sequence[Path],
        *,
        states: Sequence[DriftState] = (),
        rule: DriftRule | None = None,
        period: Period | None = None,
        block_s: float = BLOCK_S,
    ) -> None:
        """Read nothing yet.

        Args:
            project: the project.
            model: model name.
            logs: its logs.
            states: what is known already.
            rule: of versions that nothing is known of; None: the default one.
            period: begin and end of the baseline, in seconds since the epoch; None: the first week.
            block_s: of this time, in seconds, one observation counts.
        """
        self._project, self._model = project, model
        self._followers = [LogFollower(path) for path in logs]
        self._rule, self._period, self._block_s = rule, period, block_s
        self.monitors: dict[str, DriftMonitor] = {}
        self.undescribed = 0
        for state in states:
            self.monitors[state.version] = self._monitor(state)

    @property
    def damaged(self) -> int:
        """Lines that could not be read."""
        return sum(follower.damaged for follower in self._followers)

    @property
    def states(self) -> dict[str, DriftState]:
        """What is known, by version."""
        return {version: monitor.state for version, monitor in self.monitors.items()}

    def read(self, most: int | None = None) -> tuple[int, bool]:
        """Take in new lines.

        Args:
            most: largest number of lines; None: all.

        Returns:
            How many lines there were, and whether a window was completed.
        """
        lines, completed = 0, False
        for prediction in islice(self._predictions(), most):
            lines += 1
            if prediction.model == self._model and not prediction.shadow:
                completed |= self._take(prediction)
        return lines, completed

    def finish(self) -> None:
        """End baselines whose named period is over, since nothing follows."""
        for monitor in self.monitors.values():
            monitor.finish()

    def _predictions(self) -> Iterator[Prediction]:
        for follower in self._followers:
            yield from follower.each()

    def _take(self, prediction: Prediction) -> bool:
        version = prediction.version
        monitor = self.monitors.pop(version, None) or self._monitor(DriftState(self._model, version, rule=self._rule))
        self.monitors[version] = monitor
        self.undescribed += prediction.status < 400 and not prediction.watched
        return monitor.add(observation_of(prediction))

    def _monitor(self, state: DriftState) -> DriftMonitor:
        reference = _reference(self._project, self._model, state.version)
        rule = state.rule or DriftRule()
        return DriftMonitor(state, rule, reference=reference, period=self._period, block_s=self._block_s)


def logs_of(project: Project, model: str) -> list[Path]:
    """Return the logs of a model that exist: the one of single requests, and those that its archives name."""
    found = {log_file(project, model)}
    store = _quietly(lambda: model_store(project))
    for path in sorted(store.glob(f"{model}-*.mar")) if store else []:
        archive = _opened(path)
        if archive is not None and archive.manifest.model_name == model:
            found.add(log_of(project, archive))
    return sorted(path for path in found if path.exists())


def _reference(project: Project, model: str, version: str) -> Mapping[str, Sketch] | None:
    """Return the sketches of a version's archive in the model store; None if it has none."""
    path = _quietly(lambda: model_store(project) / archive_file_name(model, version))
    archive = _opened(path) if path else None
    reference = _quietly(lambda: read_reference(archive)) if archive else None
    return reference.statistics if reference else None


def _opened(path: Path) -> Archive | None:
    return _quietly(lambda: Archive.open(path)) if path.is_file() else None


def _quietly(read: Callable[[], Found]) -> Found | None:
    """Return what is read; None if it is damaged, which ``marsmith verify`` and ``marsmith lint`` report."""
    try:
        return read()
    except (MarsmithError, OSError):
        return None
