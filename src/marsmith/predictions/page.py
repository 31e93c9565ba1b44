"""A comparison of two versions as one HTML page with plots, which loads nothing."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from marsmith.predictions.charts import Line, bar_chart, line_chart
from marsmith.predictions.comparison import Report
from marsmith.predictions.report import FLIP_COLUMNS, fields, flip_rows

_OLD, _NEW = "#4a5568", "#2b6cb0"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse } th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left }
th { font-weight: 600 } svg { max-width: 100%; height: auto }
"""


def render_page(report: Report, model: str, what: str = "request", more: str = "") -> str:
    """Return the page.

    Args:
        report: the comparison.
        model: name of the model.
        what: ``request``, or ``input`` of a batch.
        more: HTML for the end of the page.
    """
    parts = (_agreement(report), _flips(report), _latency(report), more)
    return framed(f"{model}: {report.new} compared with {report.old}", fields(report, what), parts)


def framed(title: str, facts: Mapping[str, str], parts: Iterable[str]) -> str:
    """Return a page with a table of facts, and parts that are HTML already."""
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items())
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
    body = f"<h1>{_text(title)}</h1><table>{rows}</table>{''.join(parts)}"
    return f"{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def _agreement(report: Report) -> str:
    points = [each for each in report.points if each.observations]
    if not points:
        return ""
    line = Line(
        "agreement and its interval",
        _NEW,
        [(each.observations, 100 * each.rate) for each in points],
        [(each.observations, 100 * each.lower, 100 * each.upper) for each in points],
    )
    return f"<h2>Agreement</h2>{line_chart([line], x_label='replies compared', y_label='agreement, %')}"


def _flips(report: Report) -> str:
    rows = flip_rows(report)
    if not rows:
        return ""
    chart = bar_chart([(f"{_short(old)} → {_short(new)}", count) for old, new, count in rows], _NEW)
    return f"<h2>Flips by class</h2>{chart}{html_table(FLIP_COLUMNS, rows)}"


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as HTML."""
    heads = "".join(f"<th>{_text(name.capitalize())}</th>" for name in columns)
    cells = ("".join(f"<td>{_text(str(cell))}</td>" for cell in row) for row in rows)
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _latency(report: Report) -> str:
    versions = zip((report.old, report.new), (_OLD, _NEW), report.latency, strict=True)
    lines = [
        Line(version, color, [(ms, number + 1.0) for number, ms in enumerate(latency.percentiles_ms)])
        for version, color, latency in versions
        if latency.percentiles_ms
    ]
    if not lines:
        return ""
    chart = line_chart(lines, x_label="time of the handler, ms", y_label="percentile")
    return f"<h2>Time of the handler</h2>{chart}"


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _text(text: str) -> str:
    return html.escape(text)
