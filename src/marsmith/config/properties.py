r"""Java properties, the form of ``config.properties``.

The rules are those of ``java.util.Properties.load``: a line is a key, then ``=``, ``:`` or white space, then a value;
``#`` or ``!`` begins a comment; a backslash at the end of a line continues it; ``\t \n \r \f \uXXXX`` are escapes.
White space at the end of a value belongs to it. Java reads the file as Latin-1, so what is printed here is ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from marsmith.errors import ConfigError

ENCODING = "iso-8859-1"

_BLANK = " \t\f"
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f", "\\": "\\\\"}
_LINE_END = re.compile(r"\r\n|\n|\r")
_SEPARATOR = re.compile(r"[ \t\f]*[=:]?[ \t\f]*")
_KEY = re.compile(r"(?:[^\\=: \t\f]|\\.|\\$)*", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]{4}")


@dataclass(frozen=True)
class Entry:
    """One key with its value, unescaped, and the line, counted from 1, on which it begins."""

    key: str
    value: str
    line: int


def parse_properties(text: str, source: str = "config.properties") -> list[Entry]:
    r"""Parse the text of a properties file; entries keep their order, and a key may stand there twice.

    Raises:
        ConfigError: a ``\u`` that four hexadecimal digits do not follow.
    """
    entries, problems = [], []
    for number, logical in _logical_lines(text):
        key_end = _match_end(_KEY, logical, 0)
        value_start = _match_end(_SEPARATOR, logical, key_end)
        try:
            entries.append(Entry(_unescape(logical[:key_end]), _unescape(logical[value_start:]), number))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise ConfigError(source, problems)
    return entries


def as_mapping(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the values by key; where a key stands twice the last one counts, as in Java."""
    return {entry.key: entry.value for entry in entries}


def render_properties(values: Mapping[str, str]) -> str:
    """Print one ``key=value`` line for each item, in the order of the mapping; parsing gives the mapping back."""
    return "".join(f"{_escape(key, key=True)}={_escape(value)}\n" for key, value in values.items())


def _match_end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Give each logical line with the number of its first natural line; comments and blank lines are left out."""
    lines = enumerate(_LINE_END.split(text), start=1)
    for number, natural in lines:
        line = natural.lstrip(_BLANK)
        if not line or line[0] in "#!":
            continue
        while _continues(line):
            line = line[:-1] + next(lines, (0, ""))[1].lstrip(_BLANK)
        yield number, line


def _continues(line: str) -> bool:
    """Whether an odd number of backslashes ends the line: an even number is backslashes that are escaped."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _unescape(text: str) -> str:
    parts, position = [], 0
    while position < len(text):
        character = text[position]
        position += 1
        if character != "\\":
            parts.append(character)
            continue
        if position == len(text):
            break
        character = text[position]
        position += 1
        if character == "u":
            digits = text[position : position + 4]
            if not _HEX.fullmatch(digits):
                raise ValueError(f"'\\u{digits}' is not a character: four hexadecimal digits must follow \\u")
            parts.append(chr(int(digits, 16)))
            position += 4
        else:
            parts.append(_ESCAPED.get(character, character))
    return _join_surrogates("".join(parts))


def _join_surrogates(text: str) -> str:
    """Turn pairs of UTF-16 surrogates, which is how Java writes characters beyond U+FFFF, into those characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _escape(text: str, *, key: bool = False) -> str:
    parts = []
    for position, character in enumerate(text):
        if character in _ESCAPES:
            parts.append(_ESCAPES[character])
        elif (key and character in " =:#!") or (character == " " and position == 0):
            parts.append("\\" + character)
        elif " " <= character <= "~":
            parts.append(character)
        else:
            units = character.encode("utf-16-be", "surrogatepass")
            parts += [f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)]
    return "".join(parts)
