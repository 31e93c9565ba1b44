"""What every kind of archive gives to its reader, and the bounds that hold for all of them.

An archive may come from anywhere. Its reader trusts nothing that it says: names, sizes and counts are checked before
anything is unpacked, and what is unpacked is counted again.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from marsmith.archive.members import name_problem
from marsmith.errors import HostileArchiveError

Kind = Literal["mar", "tar.gz", "folder"]
Method = Literal["stored", "deflated", "file"]

CHUNK_BYTES = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
TIP = "do not serve this archive; build it again from its sources, or ask whoever made it"


@dataclass(frozen=True)
class MemberInfo:
    """One file of an archive, as the archive describes it.

    Attributes:
        name: posix path within the archive.
        size: bytes of content.
        compressed_size: bytes that it takes in the archive; for tar.gz and folders the same as ``size``.
        method: how it lies in the archive; ``file`` in tar.gz and folders.
        crc: CRC-32 of the content; None where the kind of archive has none.
    """

    name: str
    size: int
    compressed_size: int
    method: Method
    crc: int | None


@dataclass(frozen=True)
class Limits:
    """How large an archive may become when it is read.

    Attributes:
        members: most files and folders.
        total_bytes: most bytes of content, all members together.
        ratio: most bytes of content for one byte of the archive, as soon as the content is above ``ratio_from_bytes``.
        ratio_from_bytes: content up to this size is never refused for its ratio.
        text_bytes: largest manifest, list of digests or other text that marsmith itself reads.
    """

    members: int = 10_000
    total_bytes: int = 1 << 40
    ratio: int = 200
    ratio_from_bytes: int = 64 << 20
    text_bytes: int = 4 << 20


class Source(Protocol):
    """An archive of one kind, whose structure has been checked."""

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """Every file, by name, in the order of the archive."""

    def open_member(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open one member as a stream of its content; wrong content raises when its end is read."""

    def walk(self) -> Iterator[tuple[str, BinaryIO]]:
        """Give every member with its content, in one pass; each stream is valid until the next one is given."""

    def oddities(self) -> list[str]:
        """Say where the structure differs from the one that marsmith writes."""


def hostile(path: Path, problem: str, member: str | None = None) -> HostileArchiveError:
    """Make the error for a dangerous or lying structure, naming archive and member."""
    where = f"{path.name}: member {member!r}" if member is not None else path.name
    return HostileArchiveError(f"{where}: {problem}", tip=TIP)


def check_name(path: Path, name: str) -> None:
    """Raise HostileArchiveError if a member of this name could land outside the folder that it is unpacked into."""
    if "\0" in name:
        raise hostile(path, "the name holds a NUL byte", name)
    if _DRIVE.match(name):
        raise hostile(path, "the name begins with a drive letter", name)
    if problem := name_problem(name):
        raise hostile(path, problem, name)


def check_collisions(path: Path, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Raise HostileArchiveError if two names would be one file somewhere, or a file is also a folder.

    Args:
        path: the archive.
        files: names of its files, in order, equal ones included.
        folders: names of its folders, where it lists them.
    """
    seen: dict[str, str] = {}
    parents: dict[str, str] = {}
    for name in folders:
        _claim_folders(path, f"{name}/", parents)
    for name in files:
        key = _folded(name)
        if key in seen:
            problem = "the name stands twice" if seen[key] == name else _differs_only(name, seen[key])
            raise hostile(path, problem, name)
        seen[key] = name
        _claim_folders(path, name, parents)
    for key, name in parents.items():
        if key in seen:
            raise hostile(path, f"it is a file and also the folder of {name!r}", seen[key])


def _claim_folders(path: Path, name: str, parents: dict[str, str]) -> None:
    """Note the folders above ``name``; two spellings of one folder are refused."""
    parts = name.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        folder = "/".join(parts[:depth])
        known = parents.setdefault(_folded(folder), folder)
        if known != folder:
            raise hostile(path, _differs_only(folder, known), name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _differs_only(name: str, other: str) -> str:
    folded = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return f"the name differs from {other!r} by {'Unicode normalisation' if folded else 'case'} only"


def check_expansion(path: Path, limits: Limits, expanded: int, packed: int, member: str | None = None) -> None:
    """Raise HostileArchiveError if ``packed`` bytes become more than ``limits`` allow."""
    if expanded > limits.total_bytes:
        raise hostile(path, f"it would expand to {expanded:,} bytes, above the limit of {limits.total_bytes:,}", member)
    if expanded > limits.ratio_from_bytes and expanded > limits.ratio * packed:
        problem = f"{packed:,} bytes would expand to {expanded:,}, more than {limits.ratio} times: a decompression bomb"
        raise hostile(path, problem, member)


def check_count(path: Path, limits: Limits, count: int) -> None:
    """Raise HostileArchiveError if an archive has more members than ``limits`` allow."""
    if count > limits.members:
        raise hostile(path, f"{count:,} members, above the limit of {limits.members:,}")
