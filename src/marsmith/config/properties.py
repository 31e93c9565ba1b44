r"""Java properties, the format of ``config.properties``.

The rules are those of ``java.util.Properties.load``: a line is a key, then ``=``, ``:`` or white space, then a value;
``#`` or ``!`` begins a comment; a backslash at the end of a line continues it; ``\t \n \r \f \uXXXX`` are escapes.
White space at the end of a value belongs to it. Java reads the file as Latin-1, so what is printed here is ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO

import javaproperties

from marsmith.errors import ConfigError

ENCODING = "iso-8859-1"

_LINE_END = re.compile(r"\r\n|\n|\r")
# What Java's own writer escapes in a value too, and no reader needs.
_NEEDLESS = re.compile(r"\\([\\!#:=])")


@dataclass(frozen=True)
class Entry:
    """One key with its unescaped value, and the line, counted from 1, on which it begins."""

    key: str
    value: str
    line: int


def parse_properties(text: str, source: str = "config.properties") -> list[Entry]:
    r"""Parse the text of a properties file; entries keep their order, and a key may occur twice.

    Raises:
        ConfigError: a ``\u`` is not followed by four hexadecimal digits.
    """
    entries, problems = [], []
    stream = StringIO(text, newline="")
    line, begun, elements = 1, 0, javaproperties.parse(stream)
    while begun < len(text):
        try:
            element = next(elements)
            if isinstance(element, javaproperties.KeyValue):
                entries.append(Entry(element.key, element.value, line))
        except javaproperties.InvalidUEscapeError as error:
            problems.append(
                f"line {line}: '{error.escape}' is not a character: four hexadecimal digits must follow \\u"
            )
            # Parsing continues, so that all problems are reported at once.
            elements = javaproperties.parse(stream)
        line += len(_LINE_END.findall(text, begun, stream.tell()))
        begun = stream.tell()
    if problems:
        raise ConfigError(source, problems)
    return entries


def as_mapping(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the values by key; if a key occurs twice the last one counts, as in Java."""
    return {entry.key: entry.value for entry in entries}


def render_properties(values: Mapping[str, str]) -> str:
    """Render one ``key=value`` line for each item, in order; parsing gives the mapping back."""
    return "".join(f"{_line(key, value)}\n" for key, value in values.items())


def replace_entries(text: str, entries: Mapping[int, Mapping[str, str]]) -> str:
    """Return the text with entries rendered again; comments and all other lines are kept byte for byte.

    Args:
        text: text of a properties file.
        entries: new entries by the line of the old one; empty to remove it.

    Raises:
        InvalidUEscapeError: ``parse_properties`` would refuse the text.
    """
    parts, line = [], 1
    for element in javaproperties.parse(text):
        if line in entries and isinstance(element, javaproperties.KeyValue):
            ending = "\r\n" if element.source.endswith("\r\n") else "\n"
            parts.append(render_properties(entries[line]).replace("\n", ending))
        else:
            parts.append(element.source)
        line += len(_LINE_END.findall(element.source))
    return "".join(parts)


def _line(key: str, value: str) -> str:
    """Return one line; an address in it stays readable."""
    start = f"{javaproperties.escape(key)}="
    rest = javaproperties.join_key_value(key, value).removeprefix(start)
    return start + _NEEDLESS.sub(lambda found: found[0] if found[1] == "\\" else found[1], rest)
