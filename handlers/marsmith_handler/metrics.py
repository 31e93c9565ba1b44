"""Metrics of the stages of a batch, sent through TorchServe: one set for each batch, only declared metrics.

A metric is declared in the section ``model_metrics`` of the file that ``metrics_config`` in the server config names.
That file sets its type and dimensions. Only the frontend knows how long a request was queued. It publishes this time
as ``ts_queue_latency_microseconds``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

DECODE_SECONDS = "marsmith_decode_seconds"
INFER_SECONDS = "marsmith_infer_seconds"
ENCODE_SECONDS = "marsmith_encode_seconds"
BATCH_ITEMS = "marsmith_batch_items"
# Replies of 400 and above, and those of 500 and above among them, over REST and gRPC.
ITEM_ERRORS = "marsmith_item_errors_total"
ITEM_FAILURES = "marsmith_item_failures_total"
NAMES = (DECODE_SECONDS, INFER_SECONDS, ENCODE_SECONDS, BATCH_ITEMS, ITEM_ERRORS, ITEM_FAILURES)


class StageClock:
    """Measures the stages of one batch, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, metric: str) -> Iterator[None]:
        """Add the time that the block takes to ``metric``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[metric] = self.seconds.get(metric, 0.0) + time.perf_counter() - start


class StageMetrics:
    """Sends values of our metrics that the server's metrics file declares.

    Each value is a line of output that the frontend parses, so unnecessary values are not sent.
    """

    def __init__(self, declared: Mapping[str, tuple[Any, list[str]]]) -> None:
        self._declared = declared

    @classmethod
    def of(cls, cache: Any, model_name: str, model_version: str) -> StageMetrics:
        """Look up the declared metrics in TorchServe's metrics cache; None: a context without metrics."""
        known = {
            "ModelName": model_name,
            "ModelVersion": model_version,
            "Level": "Model",
            "WorkerName": f"worker-{os.getpid()}",
        }
        declared = {}
        for metrics in getattr(cache, "cache", {}).values():
            for name in NAMES:
                metric = metrics.get(name)
                if metric is not None and set(metric.dimension_names) <= known.keys():
                    declared[name] = (metric, [known[dimension] for dimension in metric.dimension_names])
                elif metric is not None:
                    logger.warning("metric %s has a dimension that no handler knows: %s", name, metric.dimension_names)
        return cls(declared)

    def emit(self, values: Mapping[str, float]) -> None:
        """Send values by metric name; those that are not declared are dropped."""
        for name, value in values.items():
            if name in self._declared:
                metric, dimensions = self._declared[name]
                metric.add_or_update(round(value, 6), dimensions)
