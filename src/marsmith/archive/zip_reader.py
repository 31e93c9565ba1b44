"""Reader of a ``.mar``: a zip whose local headers and central directory agree.

Python reads the central directory at the end, and TorchServe reads the stream of local headers in Java. A file in which
the two differ, or with bytes that one of them ignores, has different contents for the two. The whole file must
therefore consist of local header, content, local header, content ..., central directory and end record, and nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from marsmith.archive.canonical_zip import zip_layout_problems
from marsmith.archive.member_stream import MemberStream, identity, open_unchanged
from marsmith.archive.members import (
    CHUNK_BYTES,
    MemberInfo,
    ReadLimits,
    check_collisions,
    check_count,
    check_expansion,
    check_name,
    hostile,
)
from marsmith.archive.zip_layout import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    HAS_DESCRIPTOR,
    LOCAL,
    LOCAL_SIGNATURE,
    METHODS,
    CentralDirectory,
    Header,
    central_sizes,
    descriptor_size,
    find_central_directory,
    header_problem,
    local_sizes,
    mode_problem,
    zip64_field,
)

# The maximum ratio of deflate; a header with a higher ratio is wrong.
_BEST_DEFLATE_RATIO = 1032
_CENTRAL_ENTRY_MAX_BYTES = 46 + 3 * 65_535


class ZipSource:
    """The members of a ``.mar``. The constructor checks the structure; contents are checked when they are read.

    Raises:
        HostileArchiveError: the structure is dangerous or ambiguous.
        ArchiveError: the file is not a zip, or is truncated.
    """

    def __init__(self, path: Path, limits: ReadLimits) -> None:
        self._path = path
        with path.open("rb") as file:
            self._identity = identity(file)
            directory = find_central_directory(file, path)
            check_count(path, limits, directory.count)
            self._entries = _read_entries(file, path, directory)
        files = [entry for entry in self._entries if not entry.name.endswith("/")]
        folders = [entry.name.rstrip("/") for entry in self._entries if entry.name.endswith("/")]
        check_collisions(path, [entry.name for entry in files], folders)
        _check_sizes(path, limits, self._entries, self._identity.size)
        self._by_name = {entry.name: entry for entry in files}
        self._members = MappingProxyType({entry.name: _info(entry) for entry in files})
        self._check_streamed(files)

    def _check_streamed(self, files: list[Header]) -> None:
        """Read the contents with a data descriptor: Java looks for it at the end of the compressed data."""
        for entry in files:
            if entry.descriptor_size:
                with self.open_member(entry.name) as content:
                    while content.read(CHUNK_BYTES):
                        pass

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """All files by name, in the order of the archive."""
        return self._members

    @contextmanager
    def open_member(self, name: str) -> Iterator[BinaryIO]:
        """Open one member as a stream of its content."""
        with open_unchanged(self._path, self._identity) as file:
            yield MemberStream(file, self._path, self._members[name], self._by_name[name].data_offset).buffered()

    def walk(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield every member with its content, in one pass."""
        with open_unchanged(self._path, self._identity) as file:
            for name, info in self._members.items():
                yield name, MemberStream(file, self._path, info, self._by_name[name].data_offset).buffered()

    def layout_problems(self) -> list[str]:
        """Return where the structure differs from marsmith's own."""
        with open_unchanged(self._path, self._identity) as file:
            return zip_layout_problems(file, self._identity.size, self._entries)


def _info(entry: Header) -> MemberInfo:
    return MemberInfo(entry.name, entry.size, entry.compressed_size, METHODS[entry.method], entry.crc)


def _check_sizes(path: Path, limits: ReadLimits, entries: tuple[Header, ...], archive_bytes: int) -> None:
    for entry in entries:
        if METHODS[entry.method] == "stored" and entry.size != entry.compressed_size:
            sizes = f"size {entry.size:,} and {entry.compressed_size:,} bytes in the archive"
            raise hostile(path, f"it is stored, with {sizes}", entry.name)
        if entry.size > entry.compressed_size * _BEST_DEFLATE_RATIO:
            sizes = f"{entry.size:,} bytes out of {entry.compressed_size:,}"
            raise hostile(
                path,
                f"it claims {sizes}, more than deflate can compress: its sizes are false, or it is a bomb",
                entry.name,
            )
        if entry.name.endswith("/") and entry.compressed_size:
            raise hostile(path, "it is a folder, with content", entry.name)
        check_expansion(path, limits, entry.size, entry.compressed_size, entry.name)
    check_expansion(path, limits, sum(entry.size for entry in entries), archive_bytes)


def _read_entries(file: BinaryIO, path: Path, directory: CentralDirectory) -> tuple[Header, ...]:
    """Read the central directory and every local header, and match them; raise for gaps and differences."""
    if directory.size > directory.count * _CENTRAL_ENTRY_MAX_BYTES:
        raise hostile(path, "the central directory is larger than its members allow")
    file.seek(directory.offset)
    position = 0
    entries = []
    for _ in range(directory.count):
        entry = _read_central(file, path, directory.end)
        if entry.offset != position:
            raise hostile(path, _gap(entry.offset, position), entry.name)
        after_central = file.tell()
        entry = _match_local(file, path, entry)
        position = entry.end
        entries.append(entry)
        file.seek(after_central)
    if position != directory.offset:
        raise hostile(path, _gap(directory.offset, position), entries[-1].name if entries else None)
    if file.tell() != directory.end:
        raise hostile(path, "the central directory holds bytes that belong to no member")
    return tuple(entries)


def _gap(found: int, expected: int) -> str:
    if found > expected:
        return f"{found - expected:,} bytes before offset {found:,} belong to no member of the central directory"
    return f"it begins at offset {found:,}, within or before another member that ends at {expected:,}"


def _read_central(file: BinaryIO, path: Path, end: int) -> Header:
    raw = file.read(CENTRAL.size)
    if len(raw) < CENTRAL.size or raw[:4] != CENTRAL_SIGNATURE or file.tell() > end:
        raise hostile(path, "the central directory has fewer entries than its end record says")
    (_, made, needed, flags, method, time, date, crc, packed, size, *rest) = CENTRAL.unpack(raw)
    name_length, extra_length, comment_length, disk, internal, external, offset = rest
    name = _name(file.read(name_length), flags, path)
    extra = file.read(extra_length)
    if comment_length:
        raise hostile(path, "it carries a comment, which could hide other entries", name)
    if disk:
        raise hostile(path, "it lies on another disk of a multi-disk archive", name)
    if problem := header_problem(needed, flags, method) or mode_problem(external, name):
        raise hostile(path, problem, name)
    size, packed, offset = central_sizes(path, name, extra, (size, packed, offset))
    return Header(name, made, needed, flags, method, time, date, crc, packed, size, internal, external, offset, 0)


def _match_local(file: BinaryIO, path: Path, central: Header) -> Header:
    """Read the local header of an entry and return the entry with the offset of its data."""
    file.seek(central.offset)
    raw = file.read(LOCAL.size)
    if len(raw) < LOCAL.size or raw[:4] != LOCAL_SIGNATURE:
        raise hostile(path, f"there is no local header at offset {central.offset:,}", central.name)
    _, needed, flags, method, time, date, crc, packed, size, name_length, extra_length = LOCAL.unpack(raw)
    raw_name = file.read(name_length)
    if raw_name != central.name.encode():
        shown = raw_name.decode(errors="backslashreplace")
        raise hostile(path, f"its local header names it {shown!r}", central.name)
    extra = file.read(extra_length)
    data_offset, behind = file.tell(), 0
    if flags & central.flags & HAS_DESCRIPTOR:
        if zip64_field(path, central.name, extra) is not None:
            raise hostile(path, "it has a data descriptor and a zip64 field", central.name)
        behind = descriptor_size(file, path, central, data_offset)
        if not any((crc, size, packed)):
            crc, size, packed = central.crc, central.size, central.compressed_size
    size, packed = local_sizes(path, central.name, extra, (size, packed))
    if central.offset >= 0xFFFFFFFF:
        # An offset beyond 4 GiB needs zip64 only in the directory, and Python's zipfile writes it only there.
        needed = central.needed
    described = {
        "version needed": (needed, central.needed),
        "flags": (flags, central.flags),
        "method": (method, central.method),
        "time": (time, central.time),
        "date": (date, central.date),
        "CRC": (crc, central.crc),
        "compressed size": (packed, central.compressed_size),
        "size": (size, central.size),
    }
    for what, (local, directory) in described.items():
        if local != directory:
            raise hostile(
                path, f"its {what} is {local} in the local header, {directory} in the directory", central.name
            )
    return central.at(data_offset, behind)


def _name(raw: bytes, flags: int, path: Path) -> str:
    """Decode and check a member's name; the name of a folder ends with a slash."""
    try:
        # Without the flag Python uses code page 437 and Java UTF-8, so only ASCII is the same name for both.
        name = raw.decode("utf-8" if flags & 0x800 else "ascii")
    except UnicodeDecodeError:
        shown = raw.decode(errors="backslashreplace")
        raise hostile(path, "the name is not valid UTF-8, or not marked as such", shown) from None
    check_name(path, name.removesuffix("/"))
    return name
