"""What is on a board, without Grafana's form of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from marsmith.metric_names import METRICS, Needs

Kind = Literal["timeseries", "stat"]
# Grafana's names of units.
Unit = Literal["reqps", "s", "percentunit", "short", "bool"]

# What a panel says in place of "No data", by what its metrics need.
NO_VALUE: dict[Needs, str] = {
    "server": "the server is not scraped",
    "handlers": "no requests yet",
    "front": "needs the front (front: envoy)",
    "rollout": "no rollout yet",
    "shadow": "no shadow yet",
    "drift": "no window of observations yet",
    "labels": "no labels yet",
}


# What recorded series need, by the beginning of their names.
_RECORDED: dict[str, Needs] = {"model:marsmith_errors:": "handlers", "model:marsmith_slow:": "front"}


@dataclass(frozen=True)
class Query:
    """A query of a panel.

    Attributes:
        expression: in PromQL, with Grafana's variables ``$model`` and ``$__rate_interval``.
        legend: name of a series, with its labels as ``{{label}}``.
    """

    expression: str
    legend: str

    @property
    def needs(self) -> Needs:
        """What must run, so that it has values."""
        declared = {metric.name: metric.needs for metric in METRICS}
        found = [needs for name, needs in (declared | _RECORDED).items() if name in self.expression]
        return max(found, key=list(NO_VALUE).index, default="server")


@dataclass(frozen=True)
class Panel:
    """A panel.

    Attributes:
        title: its title.
        description: what it shows, and how to read it.
        unit: unit of the values.
        queries: what it asks Prometheus for.
        kind: lines over time, or the last value.
        limits: values from which it is orange and red; none: it has no colour.
        top: upper end of the axis; None: that of the data.
        texts: texts in place of values, with their colours.
        needs_level: whether only models with a service level have values.
        shows: the value, or the name of the series, of a last value.
    """

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    limits: tuple[float, float] | None = None
    top: float | None = None
    texts: tuple[tuple[str, str, str], ...] = ()
    needs_level: bool = False
    shows: Literal["value", "name"] = "value"

    @property
    def needs(self) -> Needs:
        """What must run, so that it has values: that of its first query."""
        return self.queries[0].needs

    @property
    def no_value(self) -> str:
        """What it says without a value."""
        level = "needs a service level; " if self.needs_level else ""
        return level + NO_VALUE[self.needs]


@dataclass(frozen=True)
class Row:
    """Panels under a title, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """A dashboard.

    Attributes:
        name: name in addresses and files.
        title: its title.
        description: the question that it answers.
        rows: its rows.
    """

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All its panels."""
        return tuple(panel for row in self.rows for panel in row.panels)
