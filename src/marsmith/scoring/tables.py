"""Inputs that a table lists: a column of paths or URLs (CSV, Parquet), or of bytes (Parquet)."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote

from marsmith.errors import MissingDependencyError, UsageError
from marsmith.names import did_you_mean, encodable
from marsmith.scoring import urls
from marsmith.scoring.items import Item, mtime

if TYPE_CHECKING:
    from types import ModuleType

SUFFIXES = (".csv", ".parquet")
# The usual name of the column with paths.
PATHS = "path"
# Of a table that knows them; otherwise each file is asked.
_SIZE, _STAMPS = "size", ("etag", "mtime")
_ROWS = 10_000
# Before the places of bytes in a column, see ``cell``.
CELL = "parquet:"
# Names of types of Arrow.
_BYTES, _TEXTS = re.compile("(large_)?binary|fixed_size_binary"), re.compile("(large_)?string")


class Columns(Protocol):
    """Which columns are read."""

    @property
    def column(self) -> str | None:
        """That with the inputs."""

    @property
    def key(self) -> str | None:
        """That with the keys."""


def parquet() -> ModuleType:
    """Return ``pyarrow.parquet``.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet as module
    except ImportError:
        raise MissingDependencyError("pyarrow", extra="batch") from None
    return module  # type: ignore[no-any-return]


def rows(table: str, number: int, columns: Columns) -> Iterator[Item]:
    """Yield the inputs that a table lists.

    Args:
        table: path or URL.
        number: of the source.
        columns: which columns.

    Raises:
        UsageError: it is not such a table, or lacks a column.
        OSError: it cannot be read.
    """
    return _csv(table, number, columns) if table.endswith(".csv") else _parquet(table, number, columns)


def cell(place: str) -> tuple[str, str, int, int]:
    """Return of a place in a Parquet file: path, column, row group, and row in it."""
    column, group, row, path = place.removeprefix(CELL).split(":", 3)
    return path, unquote(column), int(group), int(row)


def _csv(table: str, number: int, columns: Columns) -> Iterator[Item]:
    with urls.opened(table) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        lines = csv.reader(text)
        try:
            head = next(lines, [])
            wanted = [_column(table, head, columns.column or PATHS), *([columns.key] if columns.key else [])]
            at, key_at = head.index(wanted[0]), head.index(_column(table, head, wanted[-1]))
            size_at, stamp_at = _position(head, (_SIZE,)), _position(head, _STAMPS)
            for row in lines:
                if len(row) != len(head):
                    raise UsageError(f"{table}: line {lines.line_num} has {len(row)} values, its head {len(head)}")
                size, stamp = row[size_at] if size_at >= 0 else "", row[stamp_at] if stamp_at >= 0 else ""
                yield _listed(row[at], row[key_at], size, stamp, number)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"{table}: not a CSV file in UTF-8: {error}") from None


def _listed(path: str, key: str, size: str, stamp: str, number: int) -> Item:
    """Return the item of a path; what the table does not know about the file is asked."""
    if not (size.isdecimal() and stamp) and not urls.is_url(path):
        try:
            status = os.stat(path)  # noqa: PTH116 - hundreds of thousands
            size, stamp = str(status.st_size), mtime(status)
        except (OSError, ValueError):
            # Its row will say so.
            size = stamp = ""
    # An empty cell names no file, and not the one that is named as its key.
    place = "" if key == path else path or os.curdir
    return Item(key, int(size) if size.isdecimal() else -1, stamp, place, number)


def _parquet(table: str, number: int, columns: Columns) -> Iterator[Item]:
    module = parquet()
    with urls.opened(table) as stream:
        try:
            yield from _listed_in(module.ParquetFile(stream), table, number, columns)
        except (OSError, ValueError) as error:
            raise UsageError(f"{table}: not a whole Parquet file: {error}") from None


def _listed_in(file: Any, table: str, number: int, columns: Columns) -> Iterator[Item]:
    head = file.schema_arrow.names
    named = columns.column or (PATHS if PATHS in head else _only_bytes(table, file.schema_arrow))
    kind = file.schema_arrow.field(_column(table, head, named)).type
    if _holds(kind, _BYTES):
        yield from _cells(file, table, number, named, columns.key)
    elif _holds(kind, _TEXTS):
        yield from _paths(file, table, number, named, columns.key)
    else:
        raise UsageError(f"{table}: the column {named!r} has {kind}, and not paths or bytes", tip="--column NAME")


def _holds(kind: Any, kinds: re.Pattern[str]) -> bool:
    """Return whether a column has values of some kinds: as they are, or by number, but not in lists or structures."""
    plain = kind.value_type if str(kind).startswith("dictionary") else kind
    return kinds.match(str(plain)) is not None


def _paths(file: Any, table: str, number: int, column: str, key: str | None) -> Iterator[Item]:
    head = file.schema_arrow.names
    names = {"path": column, "key": _column(table, head, key) if key else column}
    names |= {"size": _SIZE} if _SIZE in head else {}
    names |= {"stamp": next(name for name in _STAMPS if name in head)} if set(_STAMPS) & set(head) else {}
    for batch in file.iter_batches(_ROWS, columns=list(dict.fromkeys(names.values()))):
        values = {name: batch.column(wanted).to_pylist() for name, wanted in names.items()}
        for row in range(batch.num_rows):
            size, stamp = (_text(values[name][row]) if name in values else "" for name in ("size", "stamp"))
            yield _listed(_text(values["path"][row]), _text(values["key"][row]), size, stamp, number)


def _cells(file: Any, table: str, number: int, column: str, key: str | None) -> Iterator[Item]:
    """Yield a place for each row of a column of bytes; the bytes are not read, so their sizes stay unknown."""
    stamp = mtime(os.stat(table)) if not urls.is_url(table) else ""  # noqa: PTH116
    line = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        keys = file.read_row_group(group, [_column(table, file.schema_arrow.names, key)]) if key else None
        texts = keys.column(0).to_pylist() if keys is not None else None
        for row in range(count):
            name = _text(texts[row]) if texts is not None else f"{encodable(table)}#{line:012}"
            yield Item(name, -1, stamp, f"{CELL}{quote(column)}:{group}:{row}:{table}", number)
            line += 1


def _only_bytes(table: str, schema: Any) -> str:
    found = [field.name for field in schema if _holds(field.type, _BYTES)]
    if len(found) != 1:
        raise UsageError(
            f"{table}: which column has the inputs is not clear: {', '.join(schema.names)}", tip="--column NAME"
        )
    return str(found[0])


def _column(table: str, head: Sequence[str], name: str) -> str:
    if name not in head:
        raise UsageError(
            f"{table}: no column {name!r}{did_you_mean(name, head)}",
            tip=f"--column NAME, one of: {', '.join(head) or 'none'}",
        )
    return name


def _position(head: Sequence[str], names: Sequence[str]) -> int:
    return next((head.index(name) for name in names if name in head), -1)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
