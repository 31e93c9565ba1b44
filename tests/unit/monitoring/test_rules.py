"""Alert rules: each fires and stays silent in Prometheus' own unit tests, and has a runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from marsmith.monitoring import recording
from marsmith.monitoring.alerts import BURN_RATES, Alert, all_alerts
from marsmith.monitoring.objectives import Objective
from marsmith.monitoring.rules import RUNBOOKS, render_rules
from marsmith.server.front.counters import BUCKETS_MS
from support.debian import needs
from support.golden import golden_text
from support.projects import REPOSITORY

HERE = Path(__file__).parent
EDGES_S = (0.01, 0.05, 0.1, 1.0)
LEVEL = Objective("m", 0.001, 0.05, 50)


def cases_in(name: str) -> dict[str, Any]:
    return dict(YAML(typ="safe").load(HERE / name))


@needs("promtool")
@pytest.mark.parametrize("name", ["alerts_test.yml", "burn_rates_test.yml"])
def test_each_alert_fires_and_stays_silent_where_it_should(tmp_path: Path, name: str) -> None:
    (tmp_path / "marsmith.rules.yml").write_text(render_rules([LEVEL], EDGES_S))
    shutil.copy(HERE / name, tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_rule_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    fires: set[tuple[str, str]] = set()
    silent: set[str] = set()
    for name in ("alerts_test.yml", "burn_rates_test.yml"):
        for case in (case for test in cases_in(name)["tests"] for case in test["alert_rule_test"]):
            found = {(case["alertname"], each["exp_labels"].get("window", "")) for each in case["exp_alerts"]}
            fires |= found
            silent |= set() if found else {case["alertname"]}
    assert fires == {(alert.name, alert.window) for alert in all_alerts()}
    assert silent == {alert.name for alert in all_alerts()}


@pytest.mark.parametrize("alert", all_alerts(), ids=lambda alert: f"{alert.name}{alert.window}")
def test_every_alert_links_to_its_section_of_the_runbooks(alert: Alert) -> None:
    rules = YAML(typ="safe").load(render_rules([LEVEL], EDGES_S))
    urls = {
        rule["annotations"]["runbook_url"]
        for group in rules["groups"]
        for rule in group["rules"]
        if rule.get("alert") == alert.name
    }
    assert urls == {f"{RUNBOOKS}#{alert.name.lower()}"}
    # GitHub and the site make the anchor of a heading by writing it in lower case.
    sections = re.split(r"^### ", (REPOSITORY / RUNBOOKS).read_text(), flags=re.MULTILINE)
    section = next(text for text in sections if text.startswith(f"{alert.name}\n"))
    assert len(section.split()) > 30


def test_the_rules_of_a_project_are_as_they_were() -> None:
    slow = Objective("other", 0.01, 0.08, 5)
    golden_text("monitoring/marsmith.rules.yml", render_rules([LEVEL, slow], EDGES_S))


@needs("promtool")
@pytest.mark.parametrize("levels", [[], [LEVEL], [LEVEL, Objective("n.2-x", 0.05, 90, 1)]])
def test_prometheus_accepts_the_rules(tmp_path: Path, levels: list[Objective]) -> None:
    (tmp_path / "rules.yml").write_text(render_rules(levels, EDGES_S, "https://runbooks.example/alerts"))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_model_without_a_service_level_has_the_rules_that_need_none() -> None:
    with_level, without = (YAML(typ="safe").load(render_rules(levels, EDGES_S)) for levels in ([LEVEL], []))
    alerts = [
        [rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
        for rules in (with_level, without)
    ]
    assert alerts[0] == alerts[1]
    assert recording.ERROR_BUDGET not in [rule.get("record") for group in without["groups"] for rule in group["rules"]]


def test_a_limit_between_two_edges_counts_from_the_next_one_and_above_all_there_is_no_alert() -> None:
    for p99_s, edge in ((0.05, 0.05), (0.051, 0.1), (0.001, 0.01), (1.0, 1.0), (1.01, None)):
        assert recording.slow_edge(Objective("m", 0.001, p99_s, 1), EDGES_S) == edge
    text = render_rules([Objective("m", 0.001, 2, 1)], EDGES_S)
    assert "marsmith_front_request_duration_seconds" not in text


@given(st.integers(1, 120_000))
def test_an_edge_is_written_as_the_exporter_writes_it(edge_ms: int) -> None:
    assert recording.edge(edge_ms / 1000) == str(float(f"{edge_ms}.0") / 1000.0)


def test_the_page_lists_the_bounds_of_the_fronts_histogram() -> None:
    sentence = re.search(r"Bounds are (.*?)\.\n", (REPOSITORY / RUNBOOKS).read_text())
    assert sentence
    in_ms, in_s = (re.findall(r"\d+", part) for part in sentence[1].split("ms"))
    assert [*map(int, in_ms), *(1000 * int(each) for each in in_s)] == list(BUCKETS_MS)


def test_the_windows_of_the_alerts_are_recorded() -> None:
    assert {rate.long for rate in BURN_RATES} == set(recording.LONG_WINDOWS)
    assert {window for rate in BURN_RATES for window in (rate.long, rate.short)} == set(recording.WINDOWS)
