"""Parts of queries that several panels share."""

from __future__ import annotations

from marsmith.metric_names import Metric

VERSION_LEGEND = "{{model}} {{version}}"


def of_model(metric: Metric, more: str = "", part: str = "") -> str:
    """Return the series of a metric for the models that the board shows.

    Args:
        metric: the metric.
        more: further conditions.
        part: suffix of a histogram's part.
    """
    labels = ", ".join(filter(None, ('model=~"$model"', more)))
    return f"{metric.name}{part}{{{labels}}}"


def rate(metric: Metric, more: str = "", part: str = "", by: str = "model, version") -> str:
    """Return the rate of a counter, summed by labels."""
    return f"sum by ({by}) (rate({of_model(metric, more, part)}[$__rate_interval]))"


def quotient(numerator: str, denominator: str) -> str:
    """Return a quotient, without the moments at which it is 0 / 0."""
    return f"{numerator} / ({denominator} > 0)"


def quantile(part: float, metric: Metric, more: str = "", by: str = "model") -> str:
    """Return a quantile of a histogram, by labels, without the moments at which nothing was observed."""
    return f"histogram_quantile({part:g}, {rate(metric, more, '_bucket', by=f'le, {by}')}) >= 0"
