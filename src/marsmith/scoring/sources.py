"""The inputs of a batch: files, folders, patterns, tables, tar files, and prefixes of object stores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from glob import iglob
from pathlib import Path
from typing import Any

from marsmith.errors import UsageError
from marsmith.names import encodable
from marsmith.scoring import tables, tars, urls
from marsmith.scoring.items import MTIME, Item, mtime

_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Selection:
    """Which inputs of the sources are taken.

    Attributes:
        column: column of a table with the inputs, or the suffix of the members of a tar file; None for the usual one.
        key: column of a table with the keys; None: the paths, or the numbers of the rows.
        until_ns: only what was last changed before this time, in nanoseconds since the epoch; None: all.
    """

    column: str | None = None
    key: str | None = None
    until_ns: int | None = None


def list_items(sources: list[str], selection: Selection) -> Iterator[Item]:
    """Yield the inputs of all sources, in any order.

    Raises:
        UsageError: a source does not exist, or is not what its name says.
        OSError: a source cannot be read.
        MissingDependencyError: a source needs a package that is not installed.
    """
    for number, source in enumerate(sources):
        for item, changed_ns in _items(source, number, selection):
            if selection.until_ns is None or changed_ns < selection.until_ns:
                yield item


def holds(source: str, place: str) -> bool:
    """Return whether files in a folder, or under a prefix, would be inputs of a source; patterns are not looked at."""
    if urls.is_url(source) or urls.is_url(place):
        return f"{place.rstrip('/')}/".startswith(f"{source.rstrip('/')}/")
    folder, inner = Path(source).resolve(), Path(place).resolve()
    if not folder.is_dir() or not inner.is_relative_to(folder):
        return False
    return not any(part.startswith(".") for part in inner.relative_to(folder).parts)


def _items(source: str, number: int, selection: Selection) -> Iterator[tuple[Item, int]]:
    """Yield the inputs of one source, each with the time of its last change in nanoseconds."""
    for path, changed_ns, item in _found(source, number):
        if path.endswith(tables.SUFFIXES):
            yield from ((each, _changed(each, changed_ns)) for each in tables.rows(path, number, selection))
        elif path.endswith(".tar"):
            yield from ((each, changed_ns) for each in tars.members(path, number, selection.column, item.stamp))
        elif path.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz")):
            raise UsageError(
                f"{path}: its members cannot be read one by one, because it is compressed as a whole",
                tip="unpack it, or make a .tar of it: gunzip",
            )
        else:
            yield item, changed_ns


def _found(source: str, number: int) -> Iterator[tuple[str, int, Item]]:
    """Yield the files that a source names: path, time of the last change, item."""
    if urls.is_url(source):
        yield from _objects(source, number)
    elif os.path.isdir(source):  # noqa: PTH112 - a text, as it was given
        for entry in _scan(source, frozenset()):
            yield _file(entry.path, entry.stat, number)
    elif os.path.lexists(source):
        yield _file(source, partial(os.stat, source), number)
    elif _MAGIC & set(source):
        for path in iglob(source, recursive=True):  # noqa: PTH207 - keeps paths as they were given
            if not os.path.isdir(path):  # noqa: PTH112
                yield _file(path, partial(os.stat, path), number)
    else:
        raise UsageError(
            f"no such source: {source}", tip="a file, a folder, a quoted pattern, or an s3:// or gs:// URL"
        )


def _file(path: str, stat: Callable[[], os.stat_result], number: int) -> tuple[str, int, Item]:
    key = encodable(path)
    place = "" if key == path else path
    try:
        status = stat()
    except OSError:
        # Its row will say so.
        return path, 0, Item(key, -1, "", place, number)
    return path, status.st_mtime_ns, Item(key, status.st_size, mtime(status), place, number)


def _scan(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """Yield the files in a folder and below; hidden ones and loops of links are left out."""
    status = os.stat(folder)  # noqa: PTH116
    identity = status.st_dev, status.st_ino
    if identity in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from _scan(entry.path, above | {identity})
            elif entry.is_symlink() or entry.is_file():
                yield entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, or into a folder that may not be searched: the row of the input will say so.
        return False


def _objects(url: str, number: int) -> Iterator[tuple[str, int, Item]]:
    system, path = urls.file_system(url)
    scheme = url.partition("://")[0]
    ask = system.glob if _MAGIC & set(path) else system.find
    found = urls.refusable(url, lambda: ask(path, detail=True))
    for name, facts in found.items():
        if facts.get("type") == "file" and not name.endswith("/"):
            key = f"{scheme}://{name}"
            yield key, _changed_ns(facts), Item(key, int(facts.get("size") or 0), _tag(facts), "", number)


def _tag(facts: dict[str, Any]) -> str:
    """Return what changes when an object does."""
    return str(facts.get("ETag") or facts.get("etag") or facts.get("md5Hash") or _changed_ns(facts)).strip('"')


def _changed_ns(facts: dict[str, Any]) -> int:
    at = facts.get("LastModified") or facts.get("mtime") or facts.get("updated")
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return int(at.timestamp()) * 1_000_000_000 if isinstance(at, datetime) else 0


def _changed(item: Item, otherwise_ns: int) -> int:
    """Return the time of the last change of what a table names; of the table itself if it holds the bytes."""
    return int(item.stamp.removeprefix(MTIME)) if item.stamp.startswith(MTIME) else otherwise_ns
