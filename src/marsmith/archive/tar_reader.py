"""Reader of ``.tar.gz`` archives: one top folder with regular files and folders, in POSIX tar with pax headers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, cast

from marsmith.archive.gunzip import Gunzip
from marsmith.archive.member_stream import identity, open_unchanged
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
from marsmith.archive.tar_layout import BLOCK, TarHeader, parse_header, parse_pax
from marsmith.errors import ArchiveError

_PAX_BYTES = 64 << 10
_END_PADDING_BYTES = 1 << 20


class TarSource:
    """The members of a ``.tar.gz``. The constructor reads the file once, without keeping any content.

    Raises:
        HostileArchiveError: the structure is dangerous or ambiguous.
        ArchiveError: it is not a gzip or tar file, damaged, or truncated.
    """

    def __init__(self, path: Path, limits: ReadLimits) -> None:
        self._path = path
        self._limits = limits
        with path.open("rb") as file:
            self._identity = identity(file)
            headers = [header for header, _ in _walk(Gunzip(file, path, limits), path, limits)]
        self._top = _top_folder(path, headers)
        files = [header for header in headers if not header.is_folder]
        folders = [header.name for header in headers if header.is_folder]
        check_collisions(path, [header.name for header in files], folders)
        infos = [MemberInfo(self._inner(header.name), header.size, header.size, "file", None) for header in files]
        self._members = MappingProxyType({info.name: info for info in infos})

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """All files by their names below the top folder, in the order of the archive."""
        return self._members

    @contextmanager
    def open_member(self, name: str) -> Iterator[BinaryIO]:
        """Open one member as a stream; earlier members are read and discarded."""
        if name not in self._members:
            raise KeyError(name)
        for found, stream in self.walk():
            if found == name:
                yield stream
                return

    def walk(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield every member with its content, in one pass."""
        with open_unchanged(self._path, self._identity) as file:
            for header, stream in _walk(Gunzip(file, self._path, self._limits), self._path, self._limits):
                if not header.is_folder:
                    yield self._inner(header.name), stream

    def layout_problems(self) -> list[str]:
        """Return nothing: compressed bytes are not unique for a content, so they cannot be compared."""
        return []

    def _inner(self, name: str) -> str:
        return name[len(self._top) + 1 :]


class _TarStream(io.RawIOBase):
    """The content of one member, with the length in its header."""

    def __init__(self, source: Gunzip, path: Path, size: int) -> None:
        super().__init__()
        self._source = source
        self._path = path
        self.left = size

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's Buffer is not in Python 3.11
        """Fill ``buffer``; 0 at the end."""
        chunk = self._source.read(min(len(buffer), self.left)) if self.left else b""
        if self.left and not chunk:
            raise ArchiveError(f"{self._path.name}: the tar file is cut off", tip="copy or build it again")
        self.left -= len(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def skip(self) -> None:
        """Discard the rest."""
        buffer = memoryview(bytearray(min(self.left, CHUNK_BYTES)))
        while self.readinto(buffer):
            pass


def _walk(source: Gunzip, path: Path, limits: ReadLimits) -> Iterator[tuple[TarHeader, BinaryIO]]:
    """Yield every header with its content, and check that there is no other data between or after them."""
    pax: dict[str, str] = {}
    total = count = 0
    while (header := _next_header(source, path, pax)) is not None:
        if header.kind == "pax":
            pax = _read_pax(source, path, header)
            continue
        pax = {}
        count += 1
        check_count(path, limits, count)
        total += header.size
        check_name(path, header.name)
        check_expansion(path, limits, total, max(total, 1), header.name)
        raw = _TarStream(source, path, header.size)
        yield header, cast("BinaryIO", io.BufferedReader(raw, CHUNK_BYTES))
        raw.skip()
        if source.read_exactly(-header.size % BLOCK).strip(b"\0"):
            raise hostile(path, "there is data in the padding behind it", header.name)
    if pax:
        raise hostile(path, "an extended header at the end belongs to no member")
    _check_end(source, path)


def _next_header(source: Gunzip, path: Path, pax: Mapping[str, str]) -> TarHeader | None:
    block = source.read_exactly(BLOCK)
    if not block.strip(b"\0"):
        return None
    return parse_header(path, block, pax)


def _read_pax(source: Gunzip, path: Path, header: TarHeader) -> dict[str, str]:
    if header.size > _PAX_BYTES:
        raise hostile(path, f"its extended header has {header.size:,} bytes, above {_PAX_BYTES:,}", header.name)
    records = parse_pax(path, header.name, source.read_exactly(header.size))
    source.read_exactly(-header.size % BLOCK)
    return records


def _check_end(source: Gunzip, path: Path) -> None:
    """Check that only a few zero blocks follow the first empty block."""
    seen = BLOCK
    while chunk := source.read(CHUNK_BYTES):
        seen += len(chunk)
        if chunk.strip(b"\0"):
            raise hostile(path, "there is data after its end of archive")
        if seen > _END_PADDING_BYTES:
            raise hostile(path, "there are too many zeros after its end of archive")
    if seen < 2 * BLOCK:
        raise ArchiveError(f"{path.name}: the tar file is cut off", tip="copy or build it again")


def _top_folder(path: Path, headers: list[TarHeader]) -> str:
    """Return the single top folder; TorchServe cuts each name at its first slash."""
    tops = {header.name.split("/", 1)[0] for header in headers}
    if len(tops) > 1:
        raise hostile(path, f"it has several top folders, {', '.join(map(repr, sorted(tops)[:3]))}; one is allowed")
    for header in headers:
        if "/" not in header.name and not header.is_folder:
            raise hostile(path, "it lies outside the top folder", header.name)
    return next(iter(tops), "")
