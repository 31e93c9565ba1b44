"""Records of a zip file (PKWARE's APPNOTE, section 4) that an archive may use."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from marsmith.archive.members import Method, hostile
from marsmith.errors import ArchiveError

LOCAL: Final = struct.Struct("<4s5H3L2H")
CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
LOCAL_SIGNATURE: Final = b"PK\x03\x04"
CENTRAL_SIGNATURE: Final = b"PK\x01\x02"
# Flag: the sizes are after the content, because the writer could not seek back.
HAS_DESCRIPTOR: Final = 0x8
METHODS: Final[dict[int, Method]] = {0: "stored", 8: "deflated"}

_DESCRIPTOR = struct.Struct("<4s3L")
END: Final = struct.Struct("<4s4H2LH")
END64: Final = struct.Struct("<4sQ2H2L4Q")
LOCATOR64: Final = struct.Struct("<4sLQL")
_ZIP64_VERSION = 45
_ALL_ONES_32 = 0xFFFFFFFF
_ALL_ONES_16 = 0xFFFF
_ZIP64_EXTRA = 0x0001
# Fields that give an entry another name, or mark its content as encrypted.
_REFUSED_EXTRAS = {
    0x0008: "a second name (extra field 0x0008)",
    0x7075: "a second name (extra field 0x7075)",
    0x6375: "a second comment (extra field 0x6375)",
    0x0017: "an encryption header (extra field 0x0017)",
    0x9901: "an AES encryption header (extra field 0x9901)",
}


@dataclass(frozen=True)
class CentralDirectory:
    """Position of the central directory, in bytes from the start of the file."""

    offset: int
    size: int
    count: int

    @property
    def end(self) -> int:
        """Offset of the first byte after it."""
        return self.offset + self.size


@dataclass(frozen=True)
class Header:
    """One entry with its agreeing central and local headers, as numbers in the file."""

    name: str
    made: int
    needed: int
    flags: int
    method: int
    time: int
    date: int
    crc: int
    compressed_size: int
    size: int
    internal: int
    external: int
    offset: int
    data_offset: int
    descriptor_size: int = 0

    @property
    def end(self) -> int:
        """Offset of the first byte after the entry."""
        return self.data_offset + self.compressed_size + self.descriptor_size

    def at(self, data_offset: int, descriptor_size: int = 0) -> Header:
        """Return the header with the offset of its content and the size of its data descriptor."""
        return replace(self, data_offset=data_offset, descriptor_size=descriptor_size)


def find_central_directory(file: BinaryIO, path: Path) -> CentralDirectory:
    """Read the end record, which must be the last bytes of the file.

    Raises:
        ArchiveError: there is none: the file is not a zip, or it is truncated.
        HostileArchiveError: data follows it, it spans disks, or it disagrees with its zip64 record.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END.size))
    raw = file.read(END.size)
    if len(raw) < END.size or raw[:4] != b"PK\x05\x06":
        raise _no_end_record(file, path, size)
    _, disk, first_disk, here, count, length, offset, comment = END.unpack(raw)
    if comment:
        raise ArchiveError(f"{path.name}: the file is cut off: its end record announces {comment:,} more bytes")
    end = size - END.size
    if end >= LOCATOR64.size:
        file.seek(end - LOCATOR64.size)
        locator = file.read(LOCATOR64.size)
        if locator[:4] == b"PK\x06\x07":
            return _zip64_directory(file, path, locator, end, (disk, first_disk, here, count, length, offset))
    if _ALL_ONES_32 in {length, offset} or _ALL_ONES_16 in {disk, here, count}:
        raise hostile(path, "its end record refers to a zip64 record that is not there")
    return _directory(path, (disk, first_disk, here, count, length, offset), end)


def _directory(path: Path, fields: tuple[int, ...], end: int) -> CentralDirectory:
    disk, first_disk, here, count, length, offset = fields
    if disk or first_disk or here != count:
        raise hostile(path, "it is one part of a multi-disk archive")
    if offset + length != end:
        raise hostile(
            path, "there are bytes between the central directory and the end record, or before the first member"
        )
    return CentralDirectory(offset, length, count)


def _no_end_record(file: BinaryIO, path: Path, size: int) -> ArchiveError:
    """Distinguish a file that is not a zip, a truncated zip, and a zip with data after its end."""
    file.seek(0)
    start = file.read(4)
    file.seek(max(0, size - END.size - _ALL_ONES_16))
    tail = file.read()
    if b"PK\x05\x06" in tail:
        return hostile(path, "there is a comment or other data after its end record")
    if start == LOCAL_SIGNATURE:
        return ArchiveError(f"{path.name}: the zip file is cut off: it has no end record", tip="copy or build it again")
    return ArchiveError(f"{path.name}: not a zip file", tip="a model archive is a .mar, a .tar.gz or a folder")


def _zip64_directory(file: BinaryIO, path: Path, locator: bytes, end: int, fields: tuple[int, ...]) -> CentralDirectory:
    _, disk, position, disks = LOCATOR64.unpack(locator)
    start = end - LOCATOR64.size - END64.size
    if disk or disks != 1:
        raise hostile(path, "it is one part of a multi-disk archive (zip64)")
    if position != start or start < 0:
        raise hostile(path, "its zip64 end record is in the wrong place")
    file.seek(start)
    signature, size, _, _, disk, first_disk, here, count, length, offset = END64.unpack(file.read(END64.size))
    if signature != b"PK\x06\x06" or size != END64.size - 12:
        raise hostile(path, "its zip64 end record is malformed or carries further data")
    wide = (disk, first_disk, here, count, length, offset)
    ones = (_ALL_ONES_16,) * 4 + (_ALL_ONES_32,) * 2
    for narrow, full, sentinel in zip(fields, wide, ones, strict=True):
        if narrow not in {full, sentinel}:
            raise hostile(path, "its end record and its zip64 end record disagree")
    return _directory(path, wide, start)


def descriptor_size(file: BinaryIO, path: Path, entry: Header, data_offset: int) -> int:
    """Return the size of an entry's data descriptor in bytes, after comparing it with the central header."""
    file.seek(data_offset + entry.compressed_size)
    raw = file.read(_DESCRIPTOR.size)
    # As in Java: the signature may be missing, and is looked for first.
    signed = raw[:4] == b"PK\x07\x08"
    body = raw[4:] if signed else raw[:12]
    if body != struct.pack("<3L", entry.crc, *(min(n, _ALL_ONES_32) for n in (entry.compressed_size, entry.size))):
        raise hostile(path, "its data descriptor does not say what the directory says", entry.name)
    return len(raw) if signed else len(body)


def header_problem(needed: int, flags: int, method: int) -> str | None:
    """Return why an entry's header is refused; None if it is valid."""
    if flags & 0x2041:
        return "it is encrypted"
    if flags & HAS_DESCRIPTOR and METHODS.get(method) == "stored":
        return "it is stored with a data descriptor, so nothing before its content says how long it is"
    if flags & ~(0x806 | HAS_DESCRIPTOR):
        return f"it sets flags that no archive needs ({flags:#06x})"
    if method not in METHODS:
        return f"its compression method {method} is none that TorchServe reads (stored or deflated)"
    if needed & 0xFF > _ZIP64_VERSION:
        return f"it needs version {needed / 10:.1f} of the zip format, above 4.5"
    return None


def mode_problem(external: int, name: str) -> str | None:
    """Return why the file type in an entry's attributes is refused; None for a file or folder."""
    kind = stat.S_IFMT(external >> 16)
    if kind == stat.S_IFLNK:
        return "it is a symbolic link"
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "it is a device, pipe or socket"
    is_folder = kind == stat.S_IFDIR or bool(kind == 0 and external & 0x10)
    if is_folder != name.endswith("/") and (kind or is_folder):
        return "its attributes and its name disagree on whether it is a folder"
    return None


def zip64_field(path: Path, name: str, extra: bytes) -> bytes | None:
    """Parse an entry's extra fields and return the zip64 one; raise for refused fields."""
    found: bytes | None = None
    position = 0
    while position < len(extra):
        if position + 4 > len(extra):
            raise hostile(path, "its extra fields are malformed", name)
        kind, size = struct.unpack_from("<HH", extra, position)
        content = extra[position + 4 : position + 4 + size]
        if len(content) != size:
            raise hostile(path, "its extra fields are malformed", name)
        if kind in _REFUSED_EXTRAS:
            raise hostile(path, f"it carries {_REFUSED_EXTRAS[kind]}", name)
        if kind == _ZIP64_EXTRA:
            if found is not None:
                raise hostile(path, "it has two zip64 fields", name)
            found = content
        position += 4 + size
    return found


def central_sizes(path: Path, name: str, extra: bytes, fields: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return size, compressed size and offset of a central header; its zip64 field has those that overflow."""
    field = zip64_field(path, name, extra)
    wide = [value == _ALL_ONES_32 for value in fields]
    if field is None and not any(wide):
        return fields
    if field is None or len(field) != 8 * sum(wide):
        raise hostile(path, "its zip64 field does not hold exactly the values that need it", name)
    values = iter(struct.unpack(f"<{sum(wide)}Q", field))
    size, packed, offset = (next(values) if is_wide else value for value, is_wide in zip(fields, wide, strict=True))
    return size, packed, offset


def local_sizes(path: Path, name: str, extra: bytes, fields: tuple[int, int]) -> tuple[int, int]:
    """Return size and compressed size of a local header; a zip64 field has both, and takes precedence in Java."""
    field = zip64_field(path, name, extra)
    if field is None:
        if _ALL_ONES_32 in fields:
            raise hostile(path, "its local header refers to a zip64 field that is not there", name)
        return fields
    if len(field) != 16:
        raise hostile(path, "the zip64 field of its local header does not hold both sizes", name)
    size, packed = struct.unpack("<2Q", field)
    if fields[0] not in {size, _ALL_ONES_32} or fields[1] not in {packed, _ALL_ONES_32}:
        raise hostile(path, "its local header and the zip64 field there disagree", name)
    return size, packed
