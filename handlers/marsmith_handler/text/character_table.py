"""Table for ``str.translate`` that is filled when a character first occurs.

Texts are converted one character at a time on purpose: ``unicodedata.normalize`` sorts consecutive marks in quadratic
time, which takes 8 seconds for a text of 100,000 marks.
"""

from __future__ import annotations

from collections.abc import Callable

MOST_CHARACTERS_KNOWN = 50_000  # in each table; a few megabytes


class CharacterTable(dict[int, str]):
    """A table for ``str.translate`` that calls a function once for each character."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code: int) -> str:
        if len(self) >= MOST_CHARACTERS_KNOWN:
            self.clear()
        replacement = self[code] = self._replacement(chr(code))
        return replacement
