"""Values from TorchServe's metrics API: its counts of requests, and the stages that our handlers measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from marsmith import metric_names as names
from marsmith.client.metrics import UNNAMED_VERSION, CounterSample
from marsmith.errors import MarsmithError
from marsmith.monitoring.exporter.samples import Sample, Suffix
from marsmith.monitoring.exporter.totals import Key, Series, Totals
from marsmith.server.outlook import Outlook

Version = tuple[str, str]

_BATCH = "marsmith_batch_items"
# All errors of a version, from which those of clients follow.
_ALL = "all"
# TorchServe's name of a counter: the metric that it is a part of, further labels, and the factor to its unit.
_COUNTERS: Mapping[str, tuple[names.Metric, tuple[str, ...], float]] = {
    "ts_inference_requests_total": (names.REQUESTS, (), 1.0),
    "ts_queue_latency_microseconds": (names.QUEUE_SECONDS, (), 1e-6),
    "marsmith_item_errors_total": (names.ERRORS, (_ALL,), 1.0),
    "marsmith_item_failures_total": (names.ERRORS, ("server",), 1.0),
    _BATCH: (names.BATCH, (), 1.0),
    **{f"marsmith_{stage}_seconds": (names.STAGE_SECONDS, (stage,), 1.0) for stage in ("decode", "infer", "encode")},
}
_SUFFIXES: tuple[Suffix, ...] = ("_bucket", "_sum", "_count")


class TorchServeSource:
    """Counts by version, since this source was made."""

    def __init__(self, outlook: Outlook, read: Callable[[], Iterable[CounterSample]]) -> None:
        """Begin at what TorchServe has counted so far, if it runs.

        Args:
            outlook: what the supervisor sees: the versions, and which of them are defaults.
            read: reads the metrics API. MarsmithError: that is not possible now.
        """
        self._outlook, self._read = outlook, read
        self._totals = Totals()
        # If it does not run yet, all that it will have counted is since now.
        with suppress(MarsmithError):
            self._totals.begin_at(_counts(read()))

    def collect(self) -> Iterable[Sample]:
        """Return the counts of the registered versions.

        A request that names no version counts for the version that is the default one at the time of the reading.

        Raises:
            MarsmithError: the metrics API cannot be read.
        """
        versions = self._outlook.look.versions
        defaults = {each.model_name: each.model_version for each in versions if each.default}
        self._totals.grow(_counts(self._read()), lambda key: _series(key, defaults))
        registered = {(each.model_name, each.model_version) for each in versions}
        for version in registered:
            self._complete(version)
        return [each for each in self._totals.samples() if each.labels[:2] in registered and each.labels[-1] != _ALL]

    def _complete(self, version: Version) -> None:
        """Begin counters at zero, because a rate needs a first value, and derive the errors of clients."""
        for metric in (names.REQUESTS, names.QUEUE_SECONDS):
            self._totals.at_least(Series(metric, version), 0.0)
        foreign = self._totals.of(Series(names.REQUESTS, version)) and not self._totals.of(
            Series(names.BATCH, version, "_count")
        )
        if not foreign:
            found, failed = (self._totals.of(Series(names.ERRORS, (*version, kind))) for kind in (_ALL, "server"))
            self._totals.at_least(Series(names.ERRORS, (*version, "server")), 0.0)
            # Between the two lines of a batch, a failure has not been counted as one yet.
            self._totals.at_least(Series(names.ERRORS, (*version, "client")), max(0.0, found - failed))


def _counts(samples: Iterable[CounterSample]) -> dict[Key, float]:
    """Return what is counted by name, model, version and bucket, over all other labels."""
    counts: dict[Key, float] = {}
    for sample in samples:
        model = sample.labels.get("model_name", sample.labels.get("ModelName"))
        version = sample.labels.get("model_version", sample.labels.get("ModelVersion"))
        if model is not None and version is not None and _parts(sample.name):
            key = (sample.name, model, version, sample.labels.get("le", ""))
            counts[key] = counts.get(key, 0.0) + sample.value
    return counts


def _series(key: Key, defaults: Mapping[str, str]) -> tuple[Series, float] | None:
    sample, model, version, bound = key
    parts = _parts(sample)
    version = defaults.get(model, "") if version == UNNAMED_VERSION else version
    if parts is None or not version:
        return None
    name, suffix = parts
    metric, more, factor = _COUNTERS[name]
    return Series(metric, (model, version, *more), suffix, bound), factor


def _parts(sample: str) -> tuple[str, Suffix] | None:
    """Return the name of a counter that is known, and which part of a histogram it is."""
    if sample in _COUNTERS:
        return sample, ""
    return next(((sample.removesuffix(end), end) for end in _SUFFIXES if sample.removesuffix(end) in _COUNTERS), None)
