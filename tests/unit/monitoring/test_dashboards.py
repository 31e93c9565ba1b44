"""Dashboards: well-formed for Grafana, on declared metrics alone, and every declared metric is to be seen."""

from __future__ import annotations

import json
import re
from itertools import combinations, pairwise
from typing import Any

import pytest

from marsmith.metric_names import BUILD_INFO, METRICS
from marsmith.monitoring.alerts import all_alerts
from marsmith.monitoring.dashboards import BOARDS, Board, render_board
from marsmith.monitoring.objectives import Objective
from marsmith.monitoring.rules import render_rules
from support.golden import golden_text

EDGES_S = (0.05, 0.1)
# Grafana's names of units, those that the boards may use (packages/grafana-data/src/valueFormats/categories.ts).
UNITS = {"short", "reqps", "s", "percentunit", "bool"}

each_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)


def panels(board: Board) -> list[dict[str, Any]]:
    return list(json.loads(render_board(board))["panels"])


@each_board
def test_a_board_is_as_it_was(board: Board) -> None:
    golden_text(f"monitoring/{board.name}.json", render_board(board))


@each_board
def test_each_panel_has_an_id_of_its_own_a_place_of_its_own_and_fits_into_the_grid(board: Board) -> None:
    found = panels(board)
    assert len({panel["id"] for panel in found}) == len(found)
    places = [panel["gridPos"] for panel in found]
    assert all(place["x"] + place["w"] <= 24 and place["h"] > 0 for place in places)
    assert all(first["y"] <= second["y"] for first, second in pairwise(places))
    for one, other in combinations(places, 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
        assert not (across and down), (one, other)


@each_board
def test_nothing_in_a_board_is_null_but_the_lowest_threshold(board: Board) -> None:
    def nulls(value: Any, path: str = "") -> list[str]:
        if isinstance(value, dict):
            return [each for key, inner in value.items() for each in nulls(inner, f"{path}.{key}")]
        if isinstance(value, list):
            return [each for inner in value for each in nulls(inner, path)]
        return [path] if value is None else []

    found = nulls(json.loads(render_board(board)))
    assert set(found) <= {".panels.fieldConfig.defaults.thresholds.steps.value"}


@each_board
def test_each_panel_says_what_it_shows_in_which_unit_and_what_it_needs(board: Board) -> None:
    titles = [(row.title, panel.title) for row in board.rows for panel in row.panels]
    assert len(set(titles)) == len(titles)
    for panel in board.panels:
        assert panel.unit in UNITS
        assert panel.description.endswith(".")
        assert panel.no_value
        assert all("{{" in query.legend or "{" not in query.expression for query in panel.queries)


@each_board
def test_each_query_asks_for_declared_or_recorded_series_with_labels_that_they_have(board: Board) -> None:
    rules = render_rules([Objective("m", 0.001, 0.05, 1)], EDGES_S)
    recorded = set(re.findall(r'record: "(.*)"', rules))
    declared = {metric.name: {*metric.labels, "instance", "le"} for metric in METRICS}
    for query in (query for panel in board.panels for query in panel.queries):
        names = set(re.findall(r"\b(?:model:)?marsmith_[a-z_:0-9]+", query.expression))
        assert names
        labels: set[str] = set()
        for name in names:
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in recorded or name in declared or plain in declared, query.expression
            labels |= {"model"} if name in recorded else declared.get(name) or declared[plain]
        assert set(re.findall(r"{{(\w+)}}", query.legend)) <= labels, query.legend
        assert set(re.findall(r"(\w+)=~?\"", query.expression)) <= labels, query.expression


def test_every_declared_metric_is_on_a_board_or_in_an_alert() -> None:
    text = "".join(query.expression for each in BOARDS for panel in each.panels for query in panel.queries)
    text += "".join(alert.expression for alert in all_alerts()) + render_rules([], EDGES_S)
    assert {metric.name for metric in METRICS if metric.name not in text} == {BUILD_INFO.name}
