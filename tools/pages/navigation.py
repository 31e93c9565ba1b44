"""Links at the end of each page to the pages before and after it, in the order of the index."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

SITE_MARK = "# Written by `make pages`, from docs/README.md.\n"
MARK = "<!-- navigation: written by `make pages` -->\n"


def add(pages: Mapping[Path, str], index: Path) -> dict[Path, str]:
    """Return the pages with their links at the end.

    Raises:
        ValueError: the index leaves out a page.
    """
    titles = {(index.parent / path).resolve(): title for title, path in _listed(pages[index])}
    order = [index, *titles]
    left_out = set(pages) - set(order)
    if left_out:
        raise ValueError(f"{index} does not list {sorted(map(str, left_out))}")
    titles[index] = "index"
    texts = {}
    for place, path in enumerate(order):
        before = order[place - 1] if place else None
        after = order[place + 1] if place + 1 < len(order) else None
        texts[path] = (
            f"{pages[path].partition(MARK)[0].rstrip()}\n\n{MARK}\n{_line(path, before, after, titles, index)}\n"
        )
    return texts


def site(config: str, index: str) -> str:
    """Return the site's configuration with the pages of the index in its navigation, under its headings."""
    lines = [SITE_MARK.rstrip(), "nav:", "  - README.md"]
    for heading, pages in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL):
        listed = _listed(pages)
        lines += [f"  - {heading}:", *(f"      - {title}: {path}" for title, path in listed)] if listed else []
    return config.partition(SITE_MARK)[0] + "\n".join(lines) + "\n"


def _listed(index: str) -> list[tuple[str, str]]:
    """Return title and path of each page that a table or list of the index begins with."""
    return re.findall(r"^(?:\| |- )\[([^]]+)\]\(([\w/.-]+\.md)\)", index, re.MULTILINE)


def _line(path: Path, before: Path | None, after: Path | None, titles: Mapping[Path, str], index: Path) -> str:
    parts = [
        f"previous: {_link(path, before, titles)}" if before and before != index else "",
        _link(path, index, titles) if path != index else "",
        f"next: {_link(path, after, titles)}" if after else "",
    ]
    return " |\n".join(part for part in parts if part)


def _link(page: Path, target: Path, titles: Mapping[Path, str]) -> str:
    return f"[{titles[target]}]({os.path.relpath(target, page.parent)})"
