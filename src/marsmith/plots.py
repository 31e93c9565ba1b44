"""Plots, with matplotlib if it is installed: labels inside of the frame, and plain numbers at the ticks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from marsmith.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Side = Literal["left", "center", "right"]

_SUFFIXES = (".svg", ".png", ".pdf")
_OTHER: dict[Side, Side] = {"left": "right", "right": "left", "center": "center"}
_NUMBER = "{x:,.10g}"
# How many lines a label may be moved up or down.
_MOST_LINES = 8


@contextmanager
def plotted(path: Path) -> Iterator[Figure]:
    """Return a figure, which is written into ``path``, an .svg, .png or .pdf file, at the end of the block.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: the file has another suffix or cannot be written.
    """
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"cannot draw {path}", tip="name a file that ends with .svg, .png or .pdf")
    figure = new_figure(8, 5)
    yield figure
    tidy(figure)
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure; width and height are in inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="plot") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(figure: Figure) -> None:
    """Write plain numbers at the ticks, and move the labels of points inside of the frame and off each other."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _write_plain_numbers(axis)
    figure.draw_without_rendering()
    for axes in figure.axes:
        _place_labels(axes)


def _write_plain_numbers(axis: Axis) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter, StrMethodFormatter

    formatter = axis.get_major_formatter()
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter(_NUMBER))
        axis.set_minor_formatter(NullFormatter())
    elif isinstance(formatter, ScalarFormatter):
        formatter.set_scientific(False)
        formatter.set_useOffset(False)


def _place_labels(axes: Axes) -> None:
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    frame, taken = axes.get_window_extent(), list[Bbox]()
    for label in axes.texts:
        if not isinstance(label, Annotation) or not label.get_text():
            continue
        inside = []
        for place in _places(label):
            _put(label, place)
            box = label.get_window_extent()
            if frame.x0 <= box.x0 <= box.x1 <= frame.x1 and frame.y0 <= box.y0 <= box.y1 <= frame.y1:
                inside.append(place)
                if not any(box.overlaps(other) for other in taken):
                    break
        else:
            _put(label, (inside or [next(_places(label))])[0])
        taken.append(label.get_window_extent())


def _places(label: Annotation) -> Iterator[tuple[float, float, Side]]:
    """Yield offsets from the point in points, with the alignment: as drawn, on the other side, then line by line."""
    (across, up), side = map(float, label.xyann), label.get_horizontalalignment()
    line = float(label.get_fontsize()) * 1.2
    sides = [(across, side), (-across, _OTHER[side])]
    for lines in range(_MOST_LINES + 1):
        for shift in (lines * line, -lines * line):
            yield from ((x, up + shift, alignment) for x, alignment in sides)


def _put(label: Annotation, place: tuple[float, float, Side]) -> None:
    across, up, side = place
    label.xyann = (across, up)
    label.set_horizontalalignment(side)
