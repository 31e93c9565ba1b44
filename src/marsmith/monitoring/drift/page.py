"""The drift of a version as one HTML page with plots, which loads nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from marsmith.monitoring.drift.report import COLUMNS, rows
from marsmith.monitoring.drift.state import DriftState, StatisticBaseline, StatisticVerdict
from marsmith.predictions.charts import Line, line_chart
from marsmith.predictions.page import framed

_BASELINE, _WINDOW = "#4a5568", "#2b6cb0"
_COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280")


def render_page(state: DriftState, facts: Mapping[str, str]) -> str:
    """Return the page."""
    parts = [_table(state), _history(state)]
    if state.baseline is not None and state.windows:
        by_distance = sorted(state.windows[-1].statistics, key=lambda one: -one.distance)
        parts += [_distribution(one, state.baseline.statistics[one.statistic]) for one in by_distance]
    return framed(f"Drift of {state.model}:{state.version}", facts, parts)


def _table(state: DriftState) -> str:
    heads = "".join(f"<th>{html.escape(name.capitalize())}</th>" for name in COLUMNS)
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows(state))
    return f"<h2>Statistics</h2><table><tr>{heads}</tr>{cells}</table>" if cells else ""


def _history(state: DriftState) -> str:
    """Show the distance of the most different statistics over the windows."""
    if len(state.windows) < 2:
        return ""
    last = sorted(state.windows[-1].statistics, key=lambda one: -one.distance)[: len(_COLORS)]
    begin = state.windows[0].end
    lines = [
        Line(one.statistic, color, _distances(state, one.statistic, begin))
        for one, color in zip(last, _COLORS, strict=False)
    ]
    chart = line_chart(lines, x_label="hours since the first window", y_label="distance from the baseline")
    return f"<h2>Distance over time</h2>{chart}"


def _distances(state: DriftState, statistic: str, begin: float) -> list[tuple[float, float]]:
    return [
        ((window.end - begin) / 3600, one.distance)
        for window in state.windows
        for one in window.statistics
        if one.statistic == statistic
    ]


def _distribution(one: StatisticVerdict, baseline: StatisticBaseline) -> str:
    """Show the shares of the bins, with the bins that have changed most in words."""
    before, after = _shares(baseline.sketch.counts), _shares(one.counts)
    if not any(after) or len(after) < 2:
        return ""
    lines = [
        Line("baseline", _BASELINE, list(enumerate(before, 1))),
        Line("last window", _WINDOW, list(enumerate(after, 1))),
    ]
    changes = sorted(zip(baseline.sketch.labels, before, after, strict=True), key=lambda each: -abs(each[2] - each[1]))
    words = "; ".join(f"{html.escape(label)}: {old:.1f}% to {new:.1f}%" for label, old, new in changes[:3])
    title = html.escape(one.statistic) + (" differs" if one.drifted else "")
    return f"<h2>{title}</h2>{line_chart(lines, x_label='bin', y_label='share, %')}<p>Most changed: {words}</p>"


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [100 * count / total if total else 0.0 for count in counts]
