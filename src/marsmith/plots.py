"""Plots into files, with matplotlib if it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".svg", ".png", ".pdf")


@contextmanager
def plotted(path: Path) -> Iterator[Figure]:
    """Return a figure, which is written into ``path``, an .svg, .png or .pdf file, at the end of the block.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        UsageError: the file has another suffix or cannot be written.
    """
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"cannot draw {path}", tip="name a file that ends with .svg, .png or .pdf")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="plot") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
