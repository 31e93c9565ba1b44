"""The one way in which marsmith lays out a zip: every byte outside the members' contents is known beforehand.

The headers are printed again from names, sizes and CRCs, and compared with those in the file. Where they are equal, and
every content has its digest, no byte of the file can have been changed. (Deflated contents are an exception: the same
content may be compressed to different bytes. ``marsmith archive`` stores every member.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

from marsmith.archive import manifest, sums
from marsmith.archive.zip_layout import CENTRAL, CENTRAL_SIGNATURE, LOCAL, LOCAL_SIGNATURE, Header

_ONES_16, _ONES_32 = 0xFFFF, 0xFFFFFFFF
_UNIX = 3 << 8
# 1 January 1980, 00:00; regular file with mode 0644.
_TIME, _DATE = 0, 0x21
_ATTRIBUTES = 0o100644 << 16


def zip_oddities(file: BinaryIO, size: int, entries: Sequence[Header]) -> list[str]:
    """Say where a zip differs from the way marsmith writes it, naming the member.

    Args:
        file: the zip, whose structure has been checked.
        size: of the file, in bytes.
        entries: its members, in order.
    """
    names = [entry.name for entry in entries]
    problems = []
    if names != canonical_order(names):
        problems.append(f"the members are not in order: {manifest.FILE_NAME}, then by name, then {sums.FILE_NAME}")
    problems += [
        f"member {name!r}: an entry for a folder, which marsmith never writes" for name in names if name[-1] == "/"
    ]
    for entry in entries:
        expected = _local(entry)
        file.seek(entry.offset)
        # The structure has no gaps, so a header of another length shifts the content and shows here.
        if file.read(entry.data_offset - entry.offset) != expected:
            problems.append(f"member {entry.name!r}: its local header is not the one that marsmith writes")
        if entry.descriptor_size:
            problems.append(f"member {entry.name!r}: it was streamed, with its sizes behind its content")
    return problems + _end_oddities(file, size, entries)


def canonical_order(names: Sequence[str]) -> list[str]:
    """Return names in the order in which marsmith writes them."""
    return sorted(names, key=lambda name: (name != manifest.FILE_NAME, name == sums.FILE_NAME, name))


def _end_oddities(file: BinaryIO, size: int, entries: Sequence[Header]) -> list[str]:
    """Compare the central directory, entry by entry, and the end records."""
    position = start = entries[-1].end if entries else 0
    for entry in entries:
        expected = _central(entry)
        file.seek(position)
        if file.read(len(expected)) != expected:
            # Behind an entry of another length everything is shifted; one message is enough.
            return [f"member {entry.name!r}: its entry in the central directory is not the one that marsmith writes"]
        position += len(expected)
    file.seek(position)
    same = file.read(size - position) == _end(start, position, len(entries))
    return [] if same else ["the end record is not the one that marsmith writes"]


def _is_wide(entry: Header) -> bool:
    return entry.size >= _ONES_32


def _flags(entry: Header) -> int:
    return 0 if entry.name.isascii() else 0x800


def _local(entry: Header) -> bytes:
    wide = _is_wide(entry)
    extra = struct.pack("<2H2Q", 1, 16, entry.size, entry.compressed_size) if wide else b""
    sizes = (_ONES_32, _ONES_32) if wide else (entry.compressed_size, entry.size)
    name = entry.name.encode()
    version = 45 if wide or entry.offset >= _ONES_32 else 20
    fixed = (version, _flags(entry), entry.method, _TIME, _DATE, entry.crc)
    return LOCAL.pack(LOCAL_SIGNATURE, *fixed, *sizes, len(name), len(extra)) + name + extra


def _central(entry: Header) -> bytes:
    wide, far = _is_wide(entry), entry.offset >= _ONES_32
    values = ([entry.size, entry.compressed_size] if wide else []) + ([entry.offset] if far else [])
    extra = struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values) if values else b""
    sizes = (_ONES_32, _ONES_32) if wide else (entry.compressed_size, entry.size)
    version = 45 if values else 20
    name = entry.name.encode()
    fixed = (_UNIX | version, version, _flags(entry), entry.method, _TIME, _DATE, entry.crc)
    rest = (len(name), len(extra), 0, 0, 0, _ATTRIBUTES, _ONES_32 if far else entry.offset)
    return CENTRAL.pack(CENTRAL_SIGNATURE, *fixed, *sizes, *rest) + name + extra


def _end(start: int, end: int, count: int) -> bytes:
    size = end - start
    if count < _ONES_16 and start < _ONES_32 and size < _ONES_32:
        return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, start, 0)
    made = _UNIX | 45
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, made, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    narrow = (min(count, _ONES_16), min(count, _ONES_16), min(size, _ONES_32), min(start, _ONES_32))
    return wide + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, *narrow, 0)
