"""Prometheus' rule files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from marsmith import strict_yaml
from marsmith.monitoring import recording
from marsmith.monitoring.alerts import PLAIN_ALERTS, Alert, burn_alerts
from marsmith.monitoring.objectives import Objective
from marsmith.monitoring.recording import WINDOWS, Record

RUNBOOKS = "docs/reference/alerts.md"
# Windows of a day and more change slowly, and are costly.
_SHORT, _LONG = WINDOWS[:5], WINDOWS[5:]
# Shorter than the five minutes after which Prometheus drops a series that has no new value.
_LONG_INTERVAL = "2m"


def render_rules(objectives: Sequence[Objective], edges: Sequence[float], runbooks: str = RUNBOOKS) -> str:
    """Render the rules of a project.

    Args:
        objectives: service levels; a model without one has the alerts that need none.
        edges: edges of the front's latency histogram, rising, in seconds.
        runbooks: URL of the page with the runbooks.
    """
    groups = [
        _group("marsmith service levels", _records(each for level in objectives for each in recording.budgets(level))),
        _group("marsmith ratios", _records(_ratios(objectives, edges, _SHORT))),
        _group("marsmith ratios of days", _records(_ratios(objectives, edges, _LONG)), _LONG_INTERVAL),
        _group("marsmith budgets", [_alert(alert, runbooks) for alert in burn_alerts()]),
        _group("marsmith alerts", [_alert(alert, runbooks) for alert in PLAIN_ALERTS]),
    ]
    return strict_yaml.dump({"groups": [group for group in groups if group["rules"]]}, blocks=True)


def _ratios(objectives: Sequence[Objective], edges: Sequence[float], windows: Sequence[str]) -> Iterable[Record]:
    yield from recording.errors(windows)
    for objective in objectives:
        edge_s = recording.slow_edge(objective, edges)
        if edge_s is not None:
            yield from recording.slow_requests(objective, edge_s, windows)


def _group(name: str, rules: list[dict[str, Any]], interval: str = "") -> dict[str, Any]:
    return {"name": name, **({"interval": interval} if interval else {}), "rules": rules}


def _records(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [
        {
            "record": record.name,
            "expr": f"{record.expression}\n",
            **({"labels": dict(record.labels)} if record.labels else {}),
        }
        for record in records
    ]


def _alert(alert: Alert, runbooks: str) -> dict[str, Any]:
    window = {"window": alert.window} if alert.window else {}
    return {
        "alert": alert.name,
        "expr": f"{alert.expression}\n",
        "for": alert.wait,
        "labels": {"severity": alert.severity, **window},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": f"{runbooks}#{alert.name.lower()}",
        },
    }
