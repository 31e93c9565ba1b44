"""Read a prediction log: whole, or what has come since the last look. Workers write it while it is read."""

from __future__ import annotations

import glob
import gzip
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydantic import TypeAdapter

_CHUNK = 1 << 20
# The year 2100, in seconds since the epoch: a later time is damaged, and no line after it would be the newest one.
_LATEST_S = 4_102_444_800.0
_ASIDE = re.compile(r"\.([0-9]+)(?:\.gz)?")


@dataclass(frozen=True)
class Prediction:
    """One logged request; ``handlers/marsmith_handler/prediction_log.py`` describes a line.

    Attributes:
        time: of the reply, in seconds since the epoch.
        model: name of the model.
        version: version that answered.
        status: HTTP status of the reply.
        input_sha256: digest of the body.
        reply: the reply, if it is JSON and not too large; else None.
        schema: 3, 2 for a log without ``watched``, or 1 for one that has only the fields above.
        key: the same for the same request at all versions; of schema 1 the digest of its body.
        reply_sha256: digest of the reply's bytes; empty: not logged.
        reply_bytes: size of the reply.
        handler_ms: time of the handler for the batch, in milliseconds; NaN: not logged.
        shadow: whether nobody waited for the reply.
        worker: pid of the worker.
        dropped: lines that the worker had dropped until then.
        request_id: TorchServe's own id, which a reply carries if there is no front.
        watched: numbers and classes by name, by which drift is found, of each item that was answered.
    """

    time: float
    model: str
    version: str
    status: int
    input_sha256: str
    reply: Any
    schema: Literal[1, 2, 3] = 1
    key: str = ""
    reply_sha256: str = ""
    reply_bytes: int = 0
    handler_ms: float = math.nan
    shadow: bool = False
    worker: int = 0
    dropped: int = 0
    request_id: str = ""
    watched: tuple[dict[str, float | str], ...] = ()


_LINE = TypeAdapter(Prediction)


def read_line(line: bytes) -> Prediction:
    """Parse one line.

    Raises:
        ValueError: it is damaged, or of a schema that this version of marsmith does not know.
    """
    found = _LINE.validate_json(line, strict=True)
    if not 0 <= found.time < _LATEST_S:
        raise ValueError("no such time")
    if found.schema == 1:
        return replace(found, key=found.input_sha256)
    if not found.key:
        raise ValueError("no key")
    return found


class LogFollower:
    """Reads what has come to a log since the last look, also if a worker has moved the file aside meanwhile.

    Attributes:
        path: the log; ``files_of`` names what was moved aside.
        damaged: lines that could not be read, until now.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        """Begin with all that the log has, or with what comes from now on."""
        self.path = path
        self.damaged = 0
        self._inode, self._offset = 0, 0
        if from_end and path.exists():
            found = path.stat()
            self._inode, self._offset = found.st_ino, found.st_size

    def read(self) -> list[Prediction]:
        """Return the new predictions; a line without its end is left for the next time."""
        return list(self.each())

    def each(self) -> Iterator[Prediction]:
        """Yield the new predictions one by one, for a log that is too large for memory."""
        for file in self._files():
            with file:
                try:
                    yield from self._parsed(self._lines(file))
                except (EOFError, gzip.BadGzipFile, zlib.error):
                    self.damaged += 1

    def _files(self) -> Iterator[BinaryIO]:
        """Yield the files with something new, oldest first, each at the place of the last look."""
        paths = files_of(self.path)
        inodes = [_inode(path) for path in paths]
        if self._inode in inodes:
            paths = paths[inodes.index(self._inode) :]
        elif self._inode:
            # Moved aside twice, or rewritten, since the last look.
            paths = paths[-2:]
        for path in paths:
            try:
                file = _open(path)
            except OSError:
                continue
            found = os.fstat(file.fileno())
            is_shorter = path.suffix != ".gz" and found.st_size < self._offset
            if found.st_ino != self._inode or is_shorter:
                self._inode, self._offset = found.st_ino, 0
            file.seek(self._offset)
            yield file

    def _lines(self, file: BinaryIO) -> Iterator[bytes]:
        # Joined once: a hole in a damaged file is a line of many chunks.
        rest: list[bytes] = []
        while chunk := file.read(_CHUNK):
            first, *others = chunk.split(b"\n")
            rest.append(first)
            if not others:
                continue
            *whole, last = b"".join(rest), *others
            rest = [last]
            for line in whole:
                self._offset += len(line) + 1
                yield line

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[Prediction]:
        for line in lines:
            try:
                yield read_line(line)
            except ValueError:
                self.damaged += 1


def files_of(path: Path) -> list[Path]:
    """Return the files of a log, oldest first: compressed ones, the one moved aside last, and the log itself."""
    aside = path.parent.glob(f"{glob.escape(path.name)}.*")
    numbered = (
        (int(found[1]), each) for each in aside if (found := _ASIDE.fullmatch(each.name.removeprefix(path.name)))
    )
    return [each for _, each in sorted(numbered, reverse=True)] + [path]


def _open(path: Path) -> BinaryIO:
    # Its descriptor is that of the compressed file, and its offsets are those of the content.
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
