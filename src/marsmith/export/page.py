"""Measurements as one self-contained HTML page with plots.

Needs matplotlib (extra ``plot``), which is imported when a page is made.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from typing import Any

from marsmith.export.lock import Candidate, ExportLock
from marsmith.export.machine import machine_text
from marsmith.plots import new_figure, tidy

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 73rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; font-size: 13px }
th, td { padding: 4px 6px; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child, td:nth-child(2), th:nth-child(2) { text-align: left }
tr.chosen { background: #e8f4e8; font-weight: 600 } tr.refused, tr.failed, tr.not { color: #8a3b2a }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto } svg { max-width: 100%; height: auto }
"""
_COLORS = {"passed": "#2b6cb0", "refused": "#c05621", "not possible": "#a0a0a0", "failed": "#a0a0a0"}


def render_page(lock: ExportLock, report: dict[str, Any]) -> str:
    """Return the page.

    Args:
        lock: the measurements.
        report: the export's export.json.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    sizes = sorted(lock.eager_images_per_second, key=int)
    timed = [one for one in lock.candidates if one.images_per_second]
    weights = ", ".join(f"{key} {value}" for key, value in report["weights"].items())
    parts = [
        f"<h1>{_text(lock.model)}: which form to serve</h1>",
        f"<p>Chosen: <b>{_text(lock.chosen)}</b>, {_text(lock.why)}. Weights: {_text(weights)}.</p>",
        f"<p>{_text(_setting(lock))}</p>",
        _table(lock, sizes),
        "<h2>Images per second</h2>",
        _speed_plot(lock, timed, sizes),
        "<h2>Speed and agreement</h2>",
        _agreement_plot(lock, [one for one in timed if "top1_agreement" in one.figures]),
        "<h2>Reasons</h2>",
        _reasons(lock),
        "<h2>Limits, seeds, images</h2>",
        f"<pre>{_text(json.dumps(_background(lock), indent=2))}</pre>",
    ]
    title = f"<title>{_text(lock.model)}: export</title>"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{title}<style>{_STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def _setting(lock: ExportLock) -> str:
    sizes = ", ".join(map(str, lock.batch_sizes))
    return (
        f"Measured on {machine_text(lock.machine)}. The speed-up is the geometric mean "
        f"over batch sizes {sizes}, against the eager float32 module."
    )


def _table(lock: ExportLock, sizes: Sequence[str]) -> str:
    names = ["form", "verdict", "largest error", "cosine", "top-1", "top-5", "accuracy"]
    names += [*(f"images/s at {size}" for size in sizes), "speed-up", "MB", "load, s"]
    eager = [f"{lock.eager_images_per_second[size]:.1f}" for size in sizes]
    rows = [_row("", ["eager float32 module", *[""] * 6, *eager, "1.00", "", ""])]
    for one in lock.candidates:
        kind = "chosen" if one.form == lock.chosen else one.verdict
        rows.append(_row(kind, _cells(one, sizes)))
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{''.join(rows)}</table>"


def _cells(one: Candidate, sizes: Sequence[str]) -> list[str]:
    keys = ("max_abs_error", "cosine", "top1_agreement", "top5_agreement", "accuracy")
    figures = [f"{one.figures[key]:.4g}" if key in one.figures else "" for key in keys]
    rates = [f"{one.images_per_second[size]:.1f}" if size in one.images_per_second else "" for size in sizes]
    rest = [
        f"{one.speedup:.2f}" if one.speedup else "",
        f"{one.bytes / 1e6:.1f}" if one.bytes else "",
        f"{one.load_s:.2f}" if one.load_s is not None else "",
    ]
    return [one.form, one.verdict, *figures, *rates, *rest]


def _row(kind: str, cells: Sequence[str]) -> str:
    return f'<tr class="{kind}">{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'


def _reasons(lock: ExportLock) -> str:
    items = [f"<li><b>{_text(one.form)}</b>: {_text(one.reason)}</li>" for one in lock.candidates if one.reason]
    return f"<ul>{''.join(items)}</ul>" if items else "<p>Every candidate passes.</p>"


def _background(lock: ExportLock) -> dict[str, Any]:
    whole = lock.model_dump(exclude_none=True)
    return {key: whole[key] for key in ("limits", "seeds", "fits", "machine", "images", "int8") if key in whole}


def _speed_plot(lock: ExportLock, timed: Sequence[Candidate], sizes: Sequence[str]) -> str:
    figure, axes = _figure(1.2 + 0.5 * (len(timed) + 1))
    names = ["eager float32 module", *(one.form for one in timed)]
    rows = [lock.eager_images_per_second, *(one.images_per_second for one in timed)]
    height = 0.8 / len(sizes)
    for index, size in enumerate(sizes):
        places = [place + index * height for place in range(len(rows))]
        bars = axes.barh(places, [row[size] for row in rows], height, label=f"batch of {size}")
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], names)
    axes.invert_yaxis()
    axes.set_xlabel("images per second (median of interleaved turns)")
    axes.margins(x=0.1)
    axes.legend()
    return _svg(figure)


def _agreement_plot(lock: ExportLock, timed: Sequence[Candidate]) -> str:
    figure, axes = _figure(3.6)
    for one in timed:
        axes.scatter(one.speedup, one.figures["top1_agreement"], color=_COLORS[one.verdict], zorder=3)
        label = f"{one.form} (chosen)" if one.form == lock.chosen else one.form
        axes.annotate(
            label, (one.speedup, one.figures["top1_agreement"]), (5, 5), textcoords="offset points", fontsize=8
        )
    if "top1Agreement" in lock.limits:
        axes.axhline(lock.limits["top1Agreement"], linestyle="--", color="#888", label="limit of the chosen precision")
        axes.legend(loc="lower right")
    axes.set_xlabel("speed-up over the eager float32 module")
    axes.set_ylabel("top-1 agreement")
    axes.margins(0.2)
    return _svg(figure)


def _figure(height: float) -> tuple[Any, Any]:
    figure = new_figure(9, height)
    axes = figure.add_subplot()
    axes.grid(visible=True, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    tidy(figure)
    stream = io.StringIO()
    # Text stays text, and ids are deterministic.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "marsmith"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _text(value: object) -> str:
    return html.escape(str(value))
