"""Writer of a ``.tar.gz`` with one top folder for TorchServe, with weights stored instead of deflated.

TorchServe reads only the first member of a gzip file. In it, deflated and stored blocks alternate. Python's gzip cannot
do this, and deflating a gigabyte of weights takes half a minute and saves a few per cent.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

from marsmith.archive.copier import Content, Copier

_BLOCK_BYTES = 512
_STORED_BLOCK_BYTES = 0xFFFF
# Magic, deflate, no flags, no date, no extra flags, unknown system.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x01\x00\x00\xff\xff"
_SECONDS_UNTIL_1980 = 315_532_800


class _Gzip:
    """A gzip stream whose caller decides for each piece whether to deflate it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc = 0
        self._size = 0
        write(_HEADER)

    def deflated(self, data: bytes | memoryview) -> None:
        self._count(data)
        self._write(self._deflater.compress(data))

    def stored(self, data: bytes | memoryview) -> None:
        self._count(data)
        # A full flush ends at a byte and resets the state, so the next block may be stored.
        self._write(self._deflater.flush(zlib.Z_FULL_FLUSH))
        view = memoryview(data)
        for start in range(0, len(view), _STORED_BLOCK_BYTES):
            block = view[start : start + _STORED_BLOCK_BYTES]
            self._write(struct.pack("<B2H", 0, len(block), len(block) ^ 0xFFFF))
            self._write(block)  # type: ignore[arg-type]  # bytes-like: typeshed's Buffer is not in Python 3.11

    def close(self) -> None:
        self._write(self._deflater.flush(zlib.Z_FULL_FLUSH) + _LAST_BLOCK)
        self._write(struct.pack("<2I", self._crc, self._size & 0xFFFFFFFF))

    def _count(self, data: bytes | memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)


class TarWriter:
    """Writes a ``.tar.gz``.

    Args:
        file: target; left open.
        copier: copier that computes the digests.
        top: name of the top folder.
    """

    def __init__(self, file: BinaryIO, copier: Copier, *, top: str) -> None:
        self._file = file
        self._copier = copier
        self._top = top
        self._gzip = _Gzip(file.write)

    def add(self, name: str, source: BinaryIO, size: int, *, deflate: bool = False) -> Content:
        """Write one member and return its description; ``deflate`` as False stores it.

        Raises:
            BuildError: ``source`` does not have ``size`` bytes.
        """
        entry = tarfile.TarInfo(f"{self._top}/{name}")
        entry.size, entry.mode, entry.mtime = size, 0o644, _SECONDS_UNTIL_1980
        self._gzip.deflated(entry.tobuf(tarfile.PAX_FORMAT, "utf-8"))
        content = self._copier.copy(name, source, size, self._gzip.deflated if deflate else self._gzip.stored)
        self._gzip.deflated(bytes(-size % _BLOCK_BYTES))
        return content

    def close(self) -> None:
        """Write the end of the tar and of the gzip stream, and flush."""
        self._gzip.deflated(bytes(2 * _BLOCK_BYTES))
        self._gzip.close()
        self._file.flush()
