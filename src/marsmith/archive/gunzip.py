"""Content of a gzip file as a stream, in bounded memory. The file must have one gzip member and nothing after it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from marsmith.archive.members import CHUNK_BYTES, ReadLimits, check_expansion, hostile
from marsmith.errors import ArchiveError

_INPUT_BYTES = 64 << 10


class Gunzip:
    """Inflates ``file`` step by step.

    Raises:
        HostileArchiveError: it expands beyond ``limits``, or there is data after its end.
        ArchiveError: it is damaged or truncated.
    """

    def __init__(self, file: BinaryIO, path: Path, limits: ReadLimits) -> None:
        self._file = file
        self._path = path
        self._limits = limits
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._pending = b""
        self._packed = 0
        self._expanded = 0
        self._ended = False

    def read(self, most: int) -> bytes:
        """Return 1 to ``most`` bytes; empty at the end."""
        while not self._ended:
            chunk = self._step(min(most, CHUNK_BYTES))
            if chunk:
                self._expanded += len(chunk)
                check_expansion(self._path, self._limits, self._expanded, self._packed)
                return chunk
        return b""

    def read_exactly(self, count: int) -> bytes:
        """Return ``count`` bytes; raise ArchiveError if there are fewer. Only for small counts."""
        parts = []
        while count:
            part = self.read(count)
            if not part:
                raise ArchiveError(f"{self._path.name}: the tar file is cut off", tip="copy or build it again")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _step(self, most: int) -> bytes:
        exhausted = False
        if not self._pending:
            self._pending = self._file.read(_INPUT_BYTES)
            self._packed += len(self._pending)
            exhausted = not self._pending
        try:
            chunk = self._inflate.decompress(self._pending, most)
        except zlib.error:
            raise ArchiveError(f"{self._path.name}: its gzip data is damaged", tip="copy or build it again") from None
        self._pending = self._inflate.unconsumed_tail
        if self._inflate.eof:
            self._ended = True
            if self._inflate.unused_data or self._file.read(1):
                raise hostile(self._path, "there is data after the end of its gzip stream")
        elif exhausted and not chunk:
            raise ArchiveError(f"{self._path.name}: its gzip data is cut off", tip="copy or build it again")
        return chunk
