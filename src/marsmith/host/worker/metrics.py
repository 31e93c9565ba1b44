"""Measurements of a handler: the interface of TorchServe's metrics cache, and what goes to the front with a reply."""

# ruff: noqa: ARG002 - the signatures are those of TorchServe

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Those that our handlers send if they are declared, as config/metrics.yaml declares them for TorchServe.
_COUNTERS = ("marsmith_item_errors_total", "marsmith_item_failures_total")
_HISTOGRAMS = ("marsmith_decode_seconds", "marsmith_infer_seconds", "marsmith_encode_seconds", "marsmith_batch_items")
_OURS = ("ModelName", "ModelVersion")
_USUAL = ("ModelName", "Level")

# Kind, name, value, names and values of the labels.
Measurement = tuple[str, str, float, list[str], list[str]]


class Metric:
    """One metric with its labels, as TorchServe's cache gives it."""

    def __init__(self, kind: str, name: str, dimension_names: Sequence[str], taken: list[Measurement]) -> None:
        self.metric_type = kind
        self.metric_name = name
        self.dimension_names = list(dimension_names)
        self._taken = taken

    def add_or_update(self, value: float, dimension_values: Sequence[str] = (), request_id: str = "") -> None:
        """Take a value: a counter adds it, a gauge is set to it, a histogram counts it."""
        values = [str(each) for each in dimension_values]
        self._taken.append((self.metric_type, self.metric_name, float(value), self.dimension_names, values))

    update = add_or_update


class WorkerMetrics:
    """The metrics of one worker.

    Attributes:
        cache: declared metrics by kind and name.
        request_ids: ids of the batch in work.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.request_ids: Any = None
        self._taken: list[Measurement] = []
        self.cache: dict[str, dict[str, Metric]] = {
            "counter": {name: Metric("counter", name, _OURS, self._taken) for name in _COUNTERS},
            "histogram": {name: Metric("histogram", name, _OURS, self._taken) for name in _HISTOGRAMS},
            "gauge": {},
        }

    def take(self) -> list[Measurement]:
        """Return what was measured since the last call."""
        taken = list(self._taken)
        self._taken.clear()
        return taken

    def get_metric(self, metric_name: str, metric_type: Any = "counter") -> Metric:
        """Return a metric; it is declared if it is unknown."""
        return self._metric(_kind(metric_type), metric_name, _USUAL)

    def add_metric_to_cache(
        self, metric_name: str, unit: str = "", dimension_names: Sequence[str] = (), metric_type: Any = "counter"
    ) -> Metric:
        """Declare a metric with labels of its own."""
        return self._metric(_kind(metric_type), metric_name, dimension_names)

    def add_counter(self, name: str, value: float, idx: Any = None, dimensions: Any = None, **_: Any) -> None:
        """Add to a counter."""
        self._add("counter", name, value, dimensions)

    def add_time(
        self, name: str, value: float, idx: Any = None, unit: str = "ms", dimensions: Any = None, **_: Any
    ) -> None:
        """Set a gauge of a time."""
        self._add("gauge", name, value, dimensions)

    def add_size(
        self, name: str, value: float, idx: Any = None, unit: str = "MB", dimensions: Any = None, **_: Any
    ) -> None:
        """Set a gauge of a size."""
        self._add("gauge", name, value, dimensions)

    def add_percent(self, name: str, value: float, idx: Any = None, dimensions: Any = None, **_: Any) -> None:
        """Set a gauge of a share."""
        self._add("gauge", name, value, dimensions)

    def add_error(self, name: str, value: Any, dimensions: Any = None, **_: Any) -> None:
        """Count an error; its text is not kept."""
        self._add("counter", name, 1.0, dimensions)

    def add_metric(
        self, name: str, value: float, unit: str = "", idx: Any = None, dimensions: Any = None, **more: Any
    ) -> None:
        """Take a value of a metric of any kind; a counter if the handler does not say."""
        self._add(_kind(more.get("metric_type", "counter")), name, value, dimensions)

    def _add(self, kind: str, name: str, value: float, dimensions: Any) -> None:
        own: Mapping[str, str] = {each.name: str(each.value) for each in dimensions or ()}
        labels = {"ModelName": self.model_name, "Level": "Model", **own}
        self._metric(kind, name, tuple(labels)).add_or_update(value, list(labels.values()))

    def _metric(self, kind: str, name: str, dimensions: Sequence[str]) -> Metric:
        known = self.cache.setdefault(kind, {})
        if name not in known:
            known[name] = Metric(kind, name, dimensions, self._taken)
        return known[name]


def _kind(metric_type: Any) -> str:
    """Return TorchServe's name of a kind, from its enumeration or from a text."""
    return str(getattr(metric_type, "value", metric_type))
