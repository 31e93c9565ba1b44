"""One input of a batch, and its line in the file of keys."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_ESCAPED = re.compile(r"\\(.)")
_PLAIN = {"t": "\t", "n": "\n", "r": "\r"}
# Before the time of the last change of a file, in nanoseconds since the epoch.
MTIME = "m"
# Names of files may be any bytes; Python has those that are not UTF-8 as lone surrogates.
_CODEC, _ERRORS = "utf-8", "surrogateescape"


class Item(NamedTuple):
    """One input.

    Attributes:
        key: its name in the results, unique in the batch.
        size: in bytes; -1: unknown.
        stamp: time of the last change, see ``mtime``, or the tag of an object store or a table; empty: unknown.
        place: where its bytes are, see ``reading``; empty: the key is the path or URL.
        source: number of the source that listed it.
    """

    key: str
    size: int
    stamp: str
    place: str
    source: int

    @property
    def address(self) -> str:
        """Where its bytes are."""
        return self.place or self.key


def mtime(status: os.stat_result) -> str:
    """Return the stamp of a file of this machine."""
    return f"{MTIME}{status.st_mtime_ns}"


def to_line(item: Item) -> bytes:
    r"""Return the line of an item, with its end; sorted lines are sorted by key, but for keys with \\ or tabs."""
    key, place = _escaped(item.key), _escaped(item.place)
    text = f"{key}\t{item.size}\t{_escaped(item.stamp)}\t{place}\t{item.source}\n"
    return text.encode(_CODEC, _ERRORS)


def from_line(line: bytes) -> Item:
    """Parse a line.

    Raises:
        ValueError: it is damaged.
    """
    key, size, stamp, place, source = line.rstrip(b"\n").decode(_CODEC, _ERRORS).split("\t")
    return Item(_unescaped(key), int(size), _unescaped(stamp), _unescaped(place), int(source))


def order_of(key: str) -> bytes:
    """Return what sorts keys as their lines are sorted."""
    return f"{_escaped(key)}\t".encode(_CODEC, _ERRORS)


def key_of(line: bytes) -> bytes:
    """Return the escaped key of a line, to compare it with another one."""
    return line[: line.index(b"\t")]


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], text) if _SPECIAL.search(text) else text


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: _PLAIN.get(found[1], found[1]), text) if "\\" in text else text
