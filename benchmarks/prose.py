"""Prose of the pages that benchmarks write, folded at the width that the documentation has."""

from __future__ import annotations

import textwrap

WIDTH = 120


def fold(page: str) -> str:
    """Break lines of prose above ``WIDTH`` characters between words; tables, headings and pictures stay as they are."""
    return "\n".join(_folded(line) for line in page.split("\n"))


def _folded(line: str) -> str:
    if len(line) <= WIDTH or line.startswith(("|", "#", "!")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
