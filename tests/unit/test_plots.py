"""Plots: their labels lie inside of the frame and not on each other, and their ticks are plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from marsmith.plots import new_figure, tidy

# Points at every edge, and three at one place.
POINTS = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (0.5, 0.5), (0.5, 0.5)]


def drawn(points: Sequence[tuple[float, float]], *, logarithmic: bool = False) -> tuple[Figure, Axes]:
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    axes.scatter([x for x, _ in points], [y for _, y in points])
    if logarithmic:
        axes.set_yscale("log")
    else:
        # The points lie on the frame.
        axes.margins(0)
    for number, point in enumerate(points):
        axes.annotate(f"2x1 b{number} d100", point, xytext=(4, 3), textcoords="offset points", fontsize=7)
    tidy(figure)
    figure.draw_without_rendering()
    return figure, axes


def test_every_label_lies_inside_of_the_frame() -> None:
    _, axes = drawn(POINTS)
    frame = axes.get_window_extent()
    for label in axes.texts:
        box = label.get_window_extent()
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, label
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1, label


def test_no_label_lies_on_another() -> None:
    _, axes = drawn(POINTS)
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


@pytest.mark.parametrize(("low", "high", "shown"), [(14.0, 780.0, "500"), (20_000.0, 3_000_000.0, "1,000,000")])
def test_the_ticks_of_a_logarithmic_axis_are_plain_numbers(low: float, high: float, shown: str) -> None:
    _, axes = drawn([(0.0, low), (1.0, high)], logarithmic=True)
    texts = [tick.get_text() for tick in axes.get_yticklabels()]
    assert shown in texts
    assert not [text for text in texts if "^" in text or "e" in text]


def test_the_ticks_of_a_linear_axis_have_no_offset() -> None:
    figure, axes = drawn([(1_000_000.0, 1.0), (1_000_001.0, 2.0)])
    assert axes.xaxis.get_offset_text().get_text() == ""
    assert "1000000" in "".join(tick.get_text() for tick in axes.get_xticklabels())
    assert figure.axes == [axes]
