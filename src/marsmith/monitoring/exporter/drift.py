"""Values of the last window of each version, from the files of drift, and accuracies by labels that came later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from marsmith import metric_names as names
from marsmith.monitoring.drift.state import DriftFile, DriftState, Stamp, WindowVerdict
from marsmith.monitoring.exporter.samples import Sample
from marsmith.predictions.labels import LabelledPredictions, labelled_models
from marsmith.project import Project


class DriftSource:
    """Values of a project's drift and labels."""

    def __init__(self, project: Project) -> None:
        self._project = project
        # A file may be large while a baseline is collected, and changes once in a window.
        self._known: dict[str, tuple[Stamp | None, tuple[DriftState, ...]]] = {}

    def collect(self) -> Iterable[Sample]:
        """Return the values of every version.

        Raises:
            ServerError: a file cannot be read.
        """
        models = DriftFile.models(self._project)
        found = [sample for model in models for state in self._states(model) for sample in of_drift(state)]
        for model in labelled_models(self._project):
            found += of_labels(LabelledPredictions.read(self._project, model))
        return found

    def _states(self, model: str) -> tuple[DriftState, ...]:
        file = DriftFile.of(self._project, model)
        stamp = file.stamp()
        if model not in self._known or self._known[model][0] != stamp:
            self._known[model] = stamp, file.read()
        return self._known[model][1]


def of_drift(state: DriftState) -> Iterator[Sample]:
    """Yield the values of one version: the skew as it was told once, and the last window against the baseline."""
    version = (state.model, state.version)
    last = state.windows[-1] if state.windows else None
    if state.skew:
        yield from _of_window(version, "reference", state.skew)
    if last:
        yield from _of_window(version, "baseline", last)
    if shown := last or state.skew:
        yield Sample(names.DRIFT_OBSERVATIONS, version, shown.observations)
        yield Sample(names.DRIFT_WINDOW_END, version, shown.end)


def of_labels(labelled: LabelledPredictions) -> Iterator[Sample]:
    """Yield the accuracy of each version with its interval."""
    for version, accuracy in labelled.accuracies().items():
        place = (labelled.model, version)
        for bound, value in (("lower", accuracy.lower), ("estimate", accuracy.rate), ("upper", accuracy.upper)):
            yield Sample(names.LABEL_ACCURACY, (*place, bound), value)
        yield Sample(names.LABELS, place, accuracy.observations)


def _of_window(version: tuple[str, str], against: str, window: WindowVerdict) -> Iterator[Sample]:
    for one in window.statistics:
        place = (*version, one.statistic, against)
        yield Sample(names.DRIFT_DISTANCE, place, one.distance)
        yield Sample(names.DRIFT_P_VALUE, place, one.p_value)
        yield Sample(names.DRIFT_DETECTED, place, float(one.drifted))
