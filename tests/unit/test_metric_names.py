"""The declarations keep Prometheus' conventions: https://prometheus.io/docs/practices/naming/."""

from __future__ import annotations

import re

import pytest

from marsmith.metric_names import METRICS, Metric


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_declaration_keeps_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"marsmith(_[a-z0-9]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.unit == "info")
    assert not metric.name.endswith(("_bucket", "_count", "_sum"))
    assert not re.search("_(milli|micro)seconds|_ms", metric.name)
    assert metric.name.removesuffix("_total").endswith("_seconds") == metric.unit.startswith("seconds")
    assert all(
        re.fullmatch("[a-z][a-z_]*", label) and label not in {"job", "instance", "le"} for label in metric.labels
    )
    assert metric.help.endswith(".")
    assert "\n" not in metric.help


def test_each_name_is_declared_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
