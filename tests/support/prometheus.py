"""A real Prometheus beside a test's server, which reads it every second, and what a board would ask it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from marsmith.metric_names import Needs
from marsmith.monitoring import local
from marsmith.monitoring.dashboards import BOARDS, Query
from marsmith.monitoring.folder import RULES_FILE, render_folder
from marsmith.monitoring.objectives import read_objectives
from marsmith.monitoring.prometheus import render_prometheus
from marsmith.monitoring.targets import Targets, running_targets
from marsmith.project import Project

INTERVAL_S = 1
# Longer than Envoy waits between two looks at its own counters.
RATE_INTERVAL_S = 15


@dataclass(frozen=True)
class Monitoring:
    """Prometheus and Alertmanager that run; their addresses."""

    prometheus: str
    alertmanager: str

    def series(self, query: Query) -> list[dict[str, Any]]:
        """Return what a query has now, as Grafana asks it: the last value of each series, if it is a number."""
        expression = query.expression.replace("$__rate_interval", f"{RATE_INTERVAL_S}s").replace("$model", ".*")
        reply = requests.get(f"{self.prometheus}/api/v1/query", {"query": expression}, timeout=30).json()
        assert reply["status"] == "success", (expression, reply)
        return [each for each in reply["data"]["result"] if each["value"][1] != "NaN"]

    def empty(self, needs: Iterable[Needs]) -> list[str]:
        """Return the panels of all boards that have no value, of those whose queries need no more than this."""
        there = set(needs)
        return [
            f"{board.name}: {panel.title}: {query.expression}"
            for board in BOARDS
            for panel in board.panels
            for query in panel.queries
            if query.needs in there and not self.series(query)
        ]

    def firing(self) -> set[tuple[str, str]]:
        """Return the alerts that Alertmanager has, and that are not resolved: their names and long windows."""
        alerts = requests.get(f"{self.alertmanager}/api/v2/alerts", {"active": "true"}, timeout=30).json()
        return {(alert["labels"]["alertname"], alert["labels"].get("window", "")) for alert in alerts}


@contextmanager
def monitoring(
    project: Project, changed: Mapping[str, str] | None = None, *, targets: Targets | None = None
) -> Iterator[Monitoring]:
    """Run both for the running server of a project.

    Args:
        project: the project.
        changed: files with another text than `marsmith monitor` writes.
        targets: what is read in place of the running server.
    """
    targets, ports = targets or running_targets(project), local.choose_ports(0, 0)
    assert targets is not None
    alertmanager = f"{local.LOOPBACK}:{ports.alertmanager}"
    quick = render_prometheus(
        targets.found, alertmanager, ["rules/*.yml"], scrape_interval_s=INTERVAL_S, evaluation_interval_s=INTERVAL_S
    )
    texts = render_folder(targets, read_objectives(project), alertmanager=alertmanager)
    # Rules of days are evaluated every other minute.
    rules = re.sub(r"interval: .*", f"interval: {INTERVAL_S}s", texts[RULES_FILE])
    texts |= {"prometheus.yml": quick, RULES_FILE: rules, **(changed or {})}
    for name in changed or {}:
        # An example that is there is kept.
        (project.monitoring / name).unlink(missing_ok=True)
    with local.running(project, texts, local.find_programs(), ports) as started:
        urls = {program.name: program.url for program in started}
        yield Monitoring(urls["prometheus"], urls["alertmanager"])
