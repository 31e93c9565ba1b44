"""What ``str.translate`` puts for each character, found out when it is first met.

A text is changed one character at a time here, on purpose: ``unicodedata.normalize`` sorts the marks that follow each
other, which takes it quadratic time, 8 seconds for a text of 100,000 marks.
"""

from __future__ import annotations

from collections.abc import Callable

MOST_CHARACTERS_KNOWN = 50_000  # in each table; a few megabytes


class CharacterTable(dict[int, str]):
    """A table for ``str.translate`` that asks a function once for each character, because many texts have the same."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        super().__init__()
        self._replacement = replacement

    def __missing__(self, code: int) -> str:
        if len(self) >= MOST_CHARACTERS_KNOWN:
            self.clear()
        replacement = self[code] = self._replacement(chr(code))
        return replacement
