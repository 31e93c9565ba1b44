"""Stream of the content of one member of a zip, with all claims of the headers checked."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from marsmith.archive.members import CHUNK_BYTES, MemberInfo, hostile
from marsmith.errors import ArchiveError


@dataclass(frozen=True)
class FileIdentity:
    """Identity of a file whose structure was checked."""

    device: int
    inode: int
    size: int
    modified_ns: int


def identity(file: BinaryIO) -> FileIdentity:
    """Return the identity of an open file."""
    status = os.fstat(file.fileno())
    return FileIdentity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@contextmanager
def open_unchanged(path: Path, expected: FileIdentity) -> Iterator[BinaryIO]:
    """Open a file again; raise ArchiveError if it is another file than before."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ArchiveError(f"{path}: {error.strerror}") from None
    with file:
        if identity(file) != expected:
            raise ArchiveError(
                f"{path.name}: the file changed while it was read", tip="try again when nothing writes it"
            )
        yield file


class MemberStream(io.RawIOBase):
    """Reads ``info.size`` bytes of content, stored or deflated, and checks length and CRC at the end.

    Raises:
        HostileArchiveError: the content is longer or shorter than in its header.
        ArchiveError: the content does not inflate, or has another CRC.
    """

    def __init__(self, file: BinaryIO, path: Path, info: MemberInfo, offset: int) -> None:
        super().__init__()
        self._file = file
        self._path = path
        self._info = info
        self._offset = offset
        self._packed_left = info.compressed_size
        self._left = info.size
        self._crc = 0
        self._pending = b""
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if info.method == "deflated" else None
        self._checked = False

    def buffered(self) -> BinaryIO:
        """Return this stream with a buffer."""
        return cast("BinaryIO", io.BufferedReader(self, CHUNK_BYTES))

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer is not in Python 3.11
        """Fill ``buffer``; return 0 at the end, after the content has been checked."""
        chunk = self._next(len(buffer))
        if not chunk:
            self._check_end()
            return 0
        self._crc = zlib.crc32(chunk, self._crc)
        self._left -= len(chunk)
        if not self._left:
            self._check_end()
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _next(self, most: int) -> bytes:
        if self._inflate is None:
            return self._packed(min(most, self._left))
        while not self._inflate.eof:
            if not self._pending:
                self._pending = self._packed(min(CHUNK_BYTES, self._packed_left))
            ended_input = not self._pending
            try:
                # Read one more byte, to detect content that is longer than its size.
                chunk = self._inflate.decompress(self._pending, min(most, self._left + 1))
            except zlib.error:
                raise self._damaged("its compressed data is damaged") from None
            self._pending = self._inflate.unconsumed_tail or self._inflate.unused_data
            if len(chunk) > self._left:
                problem = f"it holds more than the {self._info.size:,} bytes it claims"
                raise hostile(self._path, problem, self._info.name)
            if chunk or ended_input:
                return chunk
        return b""

    def _packed(self, count: int) -> bytes:
        if not count:
            return b""
        self._file.seek(self._offset)
        raw = self._file.read(count)
        if len(raw) != count:
            raise self._damaged("the archive ends within it")
        self._offset += count
        self._packed_left -= count
        return raw

    def _check_end(self) -> None:
        if self._checked:
            return
        if self._left:
            claimed, found = self._info.size, self._info.size - self._left
            raise hostile(self._path, f"it claims {claimed:,} bytes and holds {found:,}", self._info.name)
        if self._inflate is not None:
            self._check_inflated()
        if self._crc != self._info.crc:
            raise self._damaged(f"its content has CRC {self._crc:08x}, its header says {self._info.crc:08x}")
        self._checked = True

    def _check_inflated(self) -> None:
        """Check that the compressed data ends where the header says; Java continues where it really ends."""
        while self._inflate is not None and not self._inflate.eof:
            exhausted = not self._pending and not self._packed_left
            self._next(1)
            if exhausted and not self._inflate.eof:
                raise self._damaged("its compressed data has no end")
        if self._pending or self._packed_left:
            raise hostile(self._path, "its compressed data ends before its compressed size", self._info.name)

    def _damaged(self, problem: str) -> ArchiveError:
        return ArchiveError(f"{self._path.name}: member {self._info.name!r}: {problem}", tip="copy or build it again")
