"""Boards in Grafana's JSON (the classic form, which all versions since 10 read)."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from marsmith.metric_names import DEFAULT_VERSION
from marsmith.monitoring.dashboards.boards import Board, Panel, Query, Row

Json = dict[str, Any]

# Grafana migrates older ones when it loads them.
SCHEMA_VERSION = 39
WIDTH = 24
_HEIGHTS = {"stat": 4, "timeseries": 8}
_MOST_IN_A_LINE = 4
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
# If all values are 0, an axis would go to 100, which is 10,000% as a part.
_SMALLEST_AXIS = {"percentunit": 0.01, "short": 1}
_GREEN, _ORANGE, _RED = "green", "orange", "red"


def render_board(board: Board, *, scrape_interval_s: float = 15) -> str:
    """Render a board; ``scrape_interval_s`` is how often it is worth looking anew, in seconds."""
    return json.dumps(_dashboard(board, scrape_interval_s), indent=1) + "\n"


def _dashboard(board: Board, scrape_interval_s: float) -> Json:
    links = {
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "tags": ["marsmith"],
        "targetBlank": False,
        "title": "boards",
        "tooltip": "",
        "type": "dashboards",
        "url": "",
    }
    return {
        "uid": f"marsmith-{board.name}",
        "title": board.title,
        "description": board.description,
        "tags": ["marsmith"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": f"{scrape_interval_s:g}s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [links],
        "templating": {"list": [_data_source(), _models()]},
        "annotations": {"list": []},
        "panels": _panels(board),
    }


def _data_source() -> Json:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "options": [],
        "includeAll": False,
        "multi": False,
    }


def _models() -> Json:
    return {
        "name": "model",
        "label": "model",
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({DEFAULT_VERSION.name}, model)",
        "refresh": 2,
        "sort": 1,
        "options": [],
        "multi": True,
        "includeAll": True,
        # A model that is gone still has its past.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(board: Board) -> list[Json]:
    """Return the panels with their places; each row begins below the last one."""
    found: list[Json] = []
    top = 0
    for row in board.rows:
        title = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        found.append(
            {
                "id": len(found) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": title,
                "panels": [],
            }
        )
        top += 1
        for line in lines(row):
            height = max(_HEIGHTS[panel.kind] for panel in line)
            edges = [WIDTH * i // len(line) for i in range(len(line) + 1)]
            for panel, (left, right) in zip(line, pairwise(edges), strict=True):
                place = {"h": height, "w": right - left, "x": left, "y": top}
                found.append(_panel(panel, len(found) + 1, place))
            top += height
    return found


def lines(row: Row) -> list[tuple[Panel, ...]]:
    """Return the lines of a row: values beside values, and at most four plots in a line."""
    values = tuple(panel for panel in row.panels if panel.kind == "stat")
    plots = tuple(panel for panel in row.panels if panel.kind != "stat")
    if len(row.panels) <= _MOST_IN_A_LINE:
        return [row.panels]
    count = -(-len(plots) // _MOST_IN_A_LINE) if plots else 0
    size = -(-len(plots) // count) if count else 1
    return [*([values] if values else []), *(plots[i : i + size] for i in range(0, len(plots), size))]


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _VALUE_OPTIONS | {"textMode": _TEXT_MODES[panel.shows]} if panel.kind == "stat" else _PLOT_OPTIONS,
        "targets": [_target(query, chr(ord("A") + i), panel) for i, query in enumerate(panel.queries)],
    }


def _target(query: Query, name: str, panel: Panel) -> Json:
    return {
        "refId": name,
        "datasource": _SOURCE,
        "expr": query.expression,
        "legendFormat": query.legend,
        "editorMode": "code",
        "range": panel.kind != "stat" or panel.shows == "value",
        "instant": panel.kind == "stat" and panel.shows == "name",
    }


def _field(panel: Panel) -> Json:
    coloured = panel.limits is not None
    field: Json = {
        "unit": panel.unit,
        "noValue": panel.no_value,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "min": 0,
    }
    if panel.top is not None:
        field["max"] = panel.top
    if panel.texts:
        field["mappings"] = [_mapping(panel)]
    steps: list[Json] = [{"color": _GREEN if coloured else "text", "value": None}]
    if panel.limits is not None:
        steps += [{"color": color, "value": at} for color, at in zip((_ORANGE, _RED), panel.limits, strict=True)]
    if panel.kind == "stat":
        field["thresholds"] = {"mode": "absolute", "steps": steps}
    else:
        field["custom"] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "auto", "spanNulls": False}
        if panel.unit in _SMALLEST_AXIS and panel.top is None:
            field["custom"]["axisSoftMax"] = _SMALLEST_AXIS[panel.unit]
    return field


def _mapping(panel: Panel) -> Json:
    texts = {value: {"text": text, "color": color, "index": i} for i, (value, text, color) in enumerate(panel.texts)}
    return {"type": "value", "options": texts}


_TEXT_MODES = {"value": "auto", "name": "name"}
_VALUE_OPTIONS: Json = {
    "colorMode": "value",
    "graphMode": "area",
    "justifyMode": "auto",
    "orientation": "auto",
    "percentChangeColorMode": "standard",
    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    "showPercentChange": False,
    "wideLayout": True,
}
_PLOT_OPTIONS: Json = {
    "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
