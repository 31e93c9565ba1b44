"""Zip writer whose bytes depend only on the members.

Python's own zipfile takes dates, modes and flags from its environment and has changed between releases. TorchServe
reads an archive as a stream, so every local header has the final sizes and CRC, and there are no data descriptors.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from marsmith.archive.copier import Content, Copier
from marsmith.archive.zip_layout import CENTRAL, CENTRAL_SIGNATURE, END, END64, LOCAL, LOCAL_SIGNATURE, LOCATOR64

# Larger members are never deflated: texts are small, and they are compressed in memory.
DEFLATE_LIMIT_BYTES = 16 << 20

_ONES_16, _ONES_32 = 0xFFFF, 0xFFFFFFFF
_VERSION, _VERSION_64 = 20, 45
_UNIX = 3 << 8
_UTF8_NAME = 0x800
_STORED, _DEFLATED = 0, 8
# 1 January 1980, 00:00: the first date of the zip format.
_TIME, _DATE = 0, 0x21
_REGULAR_0644 = 0o100644 << 16
_CRC_OFFSET = 14


@dataclass(frozen=True)
class Entry:
    """One member as in its headers.

    Attributes:
        name: encoded name.
        offset: offset of its local header, in bytes from the start of the file.
        method: 0 for stored, 8 for deflated.
        crc: CRC-32 of its content.
        packed: size of its content in the file, in bytes.
        size: size of its content, in bytes.
        zip64_from: sizes and offsets from this number of bytes on are written as zip64.
    """

    name: bytes
    offset: int
    method: int
    crc: int
    packed: int
    size: int
    zip64_from: int = _ONES_32

    @property
    def wide(self) -> bool:
        """Whether its sizes need zip64."""
        return self.size >= self.zip64_from

    @property
    def far(self) -> bool:
        """Whether its offset needs zip64."""
        return self.offset >= self.zip64_from

    @property
    def flags(self) -> int:
        """Flags: whether its name is UTF-8."""
        return 0 if self.name.isascii() else _UTF8_NAME

    @property
    def version(self) -> int:
        """Version of the format that a reader needs."""
        return _VERSION_64 if self.wide or self.far else _VERSION

    def local(self, padding: bytes = b"") -> bytes:
        """Return the local header; a zip64 field there must have both sizes."""
        extra = struct.pack("<2H2Q", 1, 16, self.size, self.packed) if self.wide else b""
        sizes = (_ONES_32, _ONES_32) if self.wide else (self.packed, self.size)
        lengths = (len(self.name), len(extra) + len(padding))
        fixed = (self.version, self.flags, self.method, _TIME, _DATE, self.crc)
        return LOCAL.pack(LOCAL_SIGNATURE, *fixed, *sizes, *lengths) + self.name + extra + padding

    def central(self) -> bytes:
        """Return the header for the central directory; a zip64 field there has exactly the values that overflow."""
        values = ([self.size, self.packed] if self.wide else []) + ([self.offset] if self.far else [])
        extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
        sizes = (_ONES_32, _ONES_32) if self.wide else (self.packed, self.size)
        fixed = (_UNIX | self.version, self.version, self.flags, self.method, _TIME, _DATE, self.crc)
        rest = (len(self.name), len(extra), 0, 0, 0, _REGULAR_0644, _ONES_32 if self.far else self.offset)
        return CENTRAL.pack(CENTRAL_SIGNATURE, *fixed, *sizes, *rest) + self.name + extra


class ZipWriter:
    """Writes a zip into an empty seekable file.

    Args:
        file: target; left open.
        copier: copier that computes the digests.
        alignment: the content of every stored member starts at a multiple of this number of bytes.
        zip64_from: sizes and offsets from this number of bytes on are written as zip64.
    """

    def __init__(self, file: BinaryIO, copier: Copier, *, alignment: int = 1, zip64_from: int = _ONES_32) -> None:
        self._file = file
        self._copier = copier
        self._alignment = alignment
        self._zip64_from = zip64_from
        self._entries: list[Entry] = []

    def add(self, name: str, source: BinaryIO, size: int, *, deflate: bool = False) -> Content:
        """Write one member and return its description.

        Args:
            name: posix path.
            source: content.
            size: size of ``source``, in bytes.
            deflate: whether to deflate it if that makes it smaller, and if it has at most DEFLATE_LIMIT_BYTES.

        Raises:
            BuildError: ``source`` has another size.
        """
        if deflate and size <= DEFLATE_LIMIT_BYTES:
            return self._add_small(name, source, size)
        return self._add_stored(name, source, size)

    def close(self) -> None:
        """Write the central directory and flush."""
        start = self._file.tell()
        for entry in self._entries:
            self._file.write(entry.central())
        end = self._file.tell()
        self._file.write(end_records(start, end, len(self._entries), self._zip64_from))
        self._file.flush()

    def _add_stored(self, name: str, source: BinaryIO, size: int) -> Content:
        offset = self._file.tell()
        entry = self._entry(name, offset, _STORED, 0, size, size)
        self._file.write(entry.local(self._padding(entry)))
        content = self._copier.copy(name, source, size, self._file.write)
        end = self._file.tell()
        self._file.seek(offset + _CRC_OFFSET)
        self._file.write(struct.pack("<I", content.crc))
        self._file.seek(end)
        self._entries.append(self._entry(name, offset, _STORED, content.crc, size, size))
        return content

    def _add_small(self, name: str, source: BinaryIO, size: int) -> Content:
        plain = bytearray()
        content = self._copier.copy(name, source, size, plain.extend)
        deflater = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = deflater.compress(plain) + deflater.flush()
        method, data = (_DEFLATED, packed) if len(packed) < size else (_STORED, bytes(plain))
        entry = self._entry(name, self._file.tell(), method, content.crc, len(data), size)
        self._file.write(entry.local(self._padding(entry)))
        self._file.write(data)
        self._entries.append(entry)
        return content

    def _entry(self, name: str, offset: int, method: int, crc: int, packed: int, size: int) -> Entry:
        return Entry(name.encode(), offset, method, crc, packed, size, self._zip64_from)

    def _padding(self, entry: Entry) -> bytes:
        """Return an extra field that aligns the content, as PyTorch does."""
        if self._alignment == 1:
            return b""
        start = entry.offset + len(entry.local()) + 4
        count = -start % self._alignment
        return struct.pack("<2sH", b"FB", count) + b"Z" * count


def end_records(start: int, end: int, count: int, zip64_from: int = _ONES_32) -> bytes:
    """Return the records after a central directory.

    Args:
        start: offset of the directory, in bytes from the start of the file.
        end: offset of its end.
        count: number of its entries.
        zip64_from: sizes and offsets from this number of bytes on are written as zip64.
    """
    size = end - start
    if count < _ONES_16 and start < zip64_from and size < zip64_from:
        return END.pack(b"PK\x05\x06", 0, 0, count, count, size, start, 0)
    wide = END64.pack(b"PK\x06\x06", END64.size - 12, _UNIX | _VERSION_64, _VERSION_64, 0, 0, count, count, size, start)
    locator = LOCATOR64.pack(b"PK\x06\x07", 0, end, 1)
    narrow = (min(count, _ONES_16), min(count, _ONES_16), min(size, _ONES_32))
    offset = _ONES_32 if start >= zip64_from else start
    return wide + locator + END.pack(b"PK\x05\x06", 0, 0, *narrow, offset, 0)
