"""Charts as SVG text, for pages that load nothing."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_WIDTH, _HEIGHT = 680, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend.
        color: of CSS.
        points: x and y, from left to right.
        band: x, lower and upper y of an area around it; empty: none.
    """

    name: str
    color: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = field(default=())


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Return lines over common axes; at least one of them has points."""
    every = [point for line in lines for point in line.points]
    every += [(x, y) for line in lines for x, *ends in line.band for y in ends]
    frame = _Frame.around(every)
    parts = [_axes(frame, x_label, y_label)]
    for number, line in enumerate(lines):
        if line.band:
            edge = [(x, upper) for x, _, upper in line.band] + [(x, lower) for x, lower, _ in reversed(line.band)]
            parts.append(f'<polygon points="{frame.path(edge)}" fill="{line.color}" opacity="0.2"/>')
        parts.append(
            f'<polyline points="{frame.path(line.points)}" fill="none" stroke="{line.color}" stroke-width="2"/>'
        )
        at = _LEFT + 12, _TOP + 14 + 16 * number
        parts.append(f'<text x="{at[0]}" y="{at[1]}" fill="{line.color}">{html.escape(line.name)}</text>')
    return _svg(parts, _HEIGHT)


def bar_chart(rows: Sequence[tuple[str, int]], color: str) -> str:
    """Return a horizontal bar for each row; there is at least one, and the largest count is above 0."""
    most, step, text = max(count for _, count in rows), 24, 280
    parts = []
    for number, (name, count) in enumerate(rows):
        y, width = 8 + step * number, (_WIDTH - text - 60) * count / most
        parts.append(f'<text x="{text - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect x="{text}" y="{y}" width="{width:.1f}" height="{step - 6}" fill="{color}"/>')
        parts.append(f'<text x="{text + width + 6:.1f}" y="{y + 14}">{count}</text>')
    return _svg(parts, 16 + step * len(rows))


@dataclass(frozen=True)
class _Frame:
    """The part of the plane that a chart shows."""

    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def around(cls, points: Sequence[Point]) -> _Frame:
        ends = [(min(values), max(values)) for values in zip(*points, strict=True)]
        # A range of nothing would divide by zero.
        x, y = ((low, high if high > low else low + max(abs(low), 1.0) * 0.1) for low, high in ends)
        return cls(x, y)

    def path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.left(x):.1f},{self.top(y):.1f}" for x, y in points)

    def left(self, x: float) -> float:
        return _LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def top(self, y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    parts = []
    for x in _ticks(*frame.x):
        at = frame.left(x)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:.6g}</text>')
    for y in _ticks(*frame.y):
        at = frame.top(y)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.6g}</text>')
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    turned = f'transform="rotate(-90 14 {middle})" text-anchor="middle"'
    parts.append(f'<text x="14" y="{middle}" {turned}>{html.escape(y_label)}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers within a range."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg(parts: Sequence[str], height: int) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {_WIDTH} {height}" font-size="12">'
    return f"{head}{''.join(parts)}</svg>"
