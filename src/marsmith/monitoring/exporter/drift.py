"""Values of the last window of each version, from the files of drift, and accuracies by labels that came later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from marsmith import metric_names as names
from marsmith.monitoring.drift.state import DriftFile, DriftState, WindowVerdict
from marsmith.monitoring.exporter.samples import Sample
from marsmith.predictions.labels import LabelledPredictions, labelled_models
from marsmith.project import Project


@dataclass(frozen=True)
class DriftSource:
    """Values of a project's drift and labels."""

    project: Project

    def collect(self) -> Iterable[Sample]:
        """Return the values of every version.

        Raises:
            ServerError: a file cannot be read.
        """
        found = [
            sample
            for model in DriftFile.models(self.project)
            for state in DriftFile.of(self.project, model).read()
            for sample in of_drift(state)
        ]
        for model in labelled_models(self.project):
            found += of_labels(LabelledPredictions.read(self.project, model))
        return found


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
