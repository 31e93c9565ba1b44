"""Read inputs ahead of the handler: the bytes of an item, or what is wrong with it."""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from marsmith.errors import MarsmithError
from marsmith.scoring import tables, tars, urls
from marsmith.scoring.items import MTIME, Item, mtime

# An input is held in memory.
MOST_BYTES = 1 << 30
# Stores answer after tens of milliseconds: many are asked at once. For files of this machine one batch ahead is enough.
_REMOTE_THREADS, _REMOTE_AHEAD = 16, 32
# Files that one step of the reading thread reads, unless one of them is large.
_BLOCK_ITEMS, _LARGE_BYTES = 32, 1 << 21
# Row groups of Parquet files that are kept; inputs are sorted, so that neighbours are in the same one.
_MOST_GROUPS = 2
_NO_FILE = "it is not a regular file"


@dataclass(frozen=True)
class Unreadable:
    """Why an input has no bytes, in the words of HTTP.

    Attributes:
        status: 403 for a refused one, 404 for a missing one, 409 for one that has changed since the plan, 413 for one
            that is too large, 422 for what is not a file, 500 for any other problem.
        message: in words.
    """

    status: int
    message: str


Content = bytes | Unreadable


class Reader:
    """Reads the inputs of batches, the next ones while the handler works; a context manager."""

    def __init__(self, items: Sequence[Item], root: Path) -> None:
        """Read the inputs of one shard.

        Args:
            items: the inputs.
            root: folder of relative paths.
        """
        self._root = root
        self._is_remote = any("://" in item.address for item in items)
        self._items = items
        self._pool = ThreadPoolExecutor(_REMOTE_THREADS if self._is_remote else 1, "read")
        self._ahead = _REMOTE_AHEAD if self._is_remote else 1
        self._cells = _Cells()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], list[Content]]]:
        """Yield for each batch of positions what its items have, in order."""
        waiting: deque[tuple[Sequence[int], Callable[[], list[Content]]]] = deque()
        rest, block = iter(batches), self._block(max(map(len, batches), default=1))
        while True:
            while len(waiting) <= self._ahead and (some := list(islice(rest, block))):
                waiting.extend(self._begin(some))
            if not waiting:
                return
            batch, contents = waiting.popleft()
            yield batch, contents()

    def _block(self, size: int) -> int:
        """Return how many batches are read at once: objects one by one, files in blocks, as threads cost more."""
        if self._is_remote or any(item.size > _LARGE_BYTES for item in self._items):
            return 1
        return max(1, _BLOCK_ITEMS // size)

    def _begin(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], Callable[[], list[Content]]]]:
        """Begin to read some batches; yield each with what waits for its contents."""
        if self._is_remote:
            for batch in batches:
                futures = [self._pool.submit(self.read, self._items[at]) for at in batch]
                yield batch, partial(_results, futures)
            return
        block = self._pool.submit(lambda: [[self.read(self._items[at]) for at in batch] for batch in batches])
        for number, batch in enumerate(batches):
            yield batch, partial(_result_of, block, number)

    def read(self, item: Item) -> Content:
        """Return the bytes of an item, or what is wrong with it."""
        if item.size > MOST_BYTES:
            return Unreadable(413, f"{item.size:,} bytes, and at most {MOST_BYTES:,} are read")
        try:
            content = self._bytes(item)
        except FileNotFoundError:
            return Unreadable(404, "there is no such file any more" if item.stamp else "there is no such file")
        except IsADirectoryError:
            return Unreadable(422, _NO_FILE)
        except PermissionError:
            return Unreadable(403, "it may not be read: permission denied")
        except (OSError, ValueError, MarsmithError) as error:
            return Unreadable(500, f"it cannot be read: {error}")
        if isinstance(content, bytes) and item.size not in {-1, len(content)}:
            return Unreadable(409, f"it had {item.size:,} bytes when the plan was made, and has {len(content):,} now")
        return content

    def _bytes(self, item: Item) -> Content:
        if item.place.startswith(tables.CELL):
            path, column, group, row = tables.cell(item.place)
            address = self._address(path)
            return _changed(address, item.stamp) or self._cells.read(address, column, group, row)
        if item.place.startswith(tars.MEMBER):
            archive, start = tars.member(item.place)
            address = self._address(archive)
            return _changed(address, item.stamp) or urls.piece(address, start, item.size)
        if urls.is_url(item.address):
            with urls.opened(item.address) as file:
                return file.read()
        return _file(self._address(item.address), item.stamp)

    def _address(self, address: str) -> str:
        """Return a path as it is for a process with any working folder."""
        return address if urls.is_url(address) else os.path.join(self._root, address)  # noqa: PTH118 - for each input


def _results(futures: Sequence[Future[Content]]) -> list[Content]:
    return [future.result() for future in futures]


def _result_of(block: Future[list[list[Content]]], number: int) -> list[Content]:
    return block.result()[number]


def _file(path: str, stamp: str) -> Content:
    """Return the content of a file, if it is the one that was planned."""
    with open(path, "rb", buffering=0, opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return Unreadable(422, _NO_FILE)
        return _unlike(status, stamp) or file.read()


def _changed(address: str, stamp: str) -> Unreadable | None:
    """Return what is wrong with a file that holds many inputs, if it is not the one that was planned."""
    return None if urls.is_url(address) else _unlike(os.stat(address), stamp)  # noqa: PTH116 - for each input


def _unlike(status: os.stat_result, stamp: str) -> Unreadable | None:
    # A table may know a tag of its own instead of the time.
    if stamp.startswith(MTIME) and stamp != mtime(status):
        return Unreadable(409, "it was changed after the plan was made")
    return None


def _open(path: str, flags: int) -> int:
    """Open a file without blocking if a pipe has taken its place."""
    return os.open(path, flags | os.O_NONBLOCK)


class _Cells:
    """Reads cells of Parquet files, a row group at a time."""

    def __init__(self) -> None:
        self._groups: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, column: str, group: int, row: int) -> Content:
        key = (path, column, group)
        with self._lock:
            if key not in self._groups:
                with urls.opened(path) as file:
                    self._groups[key] = tables.parquet().ParquetFile(file).read_row_group(group, [column]).column(0)
                while len(self._groups) > _MOST_GROUPS:
                    self._groups.popitem(last=False)
            value = self._groups[key][row].as_py()
        return value if isinstance(value, bytes) else Unreadable(422, "the cell is null")
