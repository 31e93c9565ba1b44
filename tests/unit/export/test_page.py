"""The page of an export's measurements."""

from __future__ import annotations

import re

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from marsmith.export.lock import parse_export_lock
from marsmith.export.page import render_page
from support.projects import REPOSITORY

# Of a window, in pixels; and of the page in it, whose margins are 1rem each.
WINDOW = 1200
MARGINS = 32
# As the page's style has them.
TEXT, PADDING = 13, 12


def width_of(text: str) -> float:
    """Return the width of a text in pixels, in a font that is wider than those of most systems."""
    return (
        float(TextPath((0, 0), text, size=TEXT, prop=FontProperties("DejaVu Sans")).get_extents().width) if text else 0
    )


def test_the_table_of_the_default_model_fits_a_window() -> None:
    file = REPOSITORY / "config" / "models" / "efficientnet_lite0.lock"
    page = render_page(
        parse_export_lock(file.read_text(encoding="utf-8"), file.name), {"weights": {"source": "recipe"}}
    )
    assert f"font-size: {TEXT}px" in page
    assert f"padding: 4px {PADDING // 2}px" in page
    rows = [re.findall(r"<t([dh])>(.*?)</t", row) for row in re.findall(r"<tr.*?</tr>", page)]
    # A heading may be broken between words; a cell is not.
    widths = [
        max(width_of(part) for kind, text in column for part in (text.split() if kind == "h" else [text]))
        for column in zip(*rows, strict=True)
    ]
    assert sum(widths) + PADDING * len(widths) <= WINDOW - MARGINS
