"""One file of an archive, and the names that it may have.

What every kind of archive gives to its reader, and the bounds that hold for all of them.

An archive may come from anywhere. Its reader trusts nothing that it says: names, sizes and counts are checked before
anything is unpacked, and what is unpacked is counted again.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from marsmith import files
from marsmith.errors import HostileArchiveError
from marsmith.names import is_hidden

MAX_NAME_BYTES = 1024
_MAX_PART_BYTES = 255


@dataclass(frozen=True)
class Member:
    """One file of an archive, before it is written.

    Attributes:
        name: posix path within the archive, as ``model.pt`` or ``MAR-INF/export.json``.
        source: the file whose content it gets, or the content itself.
    """

    name: str
    source: Path | bytes

    def sha256(self) -> str:
        """Return the SHA-256 of the content, in hex, reading a file in constant memory."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return files.sha256(self.source)


def name_problem(name: str) -> str | None:
    """Say what is wrong with a member's name, in words; None if nothing is.

    A good name is a relative posix path that lands inside the folder it is unpacked into, on any machine, and that
    ``sha256sum`` prints as it is.
    """
    if not name:
        return "the name is empty"
    if name.startswith("/"):
        return "the name is absolute"
    if "\\" in name:
        return "the name holds a backslash"
    if any(map(is_hidden, name)):
        return "the name holds a control character, one that hides or reorders text, or is not valid Unicode"
    parts = name.split("/")
    if any(part in {".", ".."} for part in parts):
        return "the name holds '.' or '..' as a part"
    if "" in parts:
        return "the name holds an empty part"
    if parts[0][1:2] == ":":
        return "the name begins with a drive letter"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > _MAX_PART_BYTES for part in parts):
        return "the name is too long"
    return None


def folded(name: str) -> str:
    """Return what a file system that ignores case and Unicode normalisation takes ``name`` for."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


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
class ReadLimits:
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


class MemberSource(Protocol):
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
        key = folded(name)
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
        known = parents.setdefault(folded(folder), folder)
        if known != folder:
            raise hostile(path, _differs_only(folder, known), name)


def _differs_only(name: str, other: str) -> str:
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    return f"the name differs from {other!r} by {'Unicode normalisation' if same else 'case'} only"


def check_expansion(path: Path, limits: ReadLimits, expanded: int, packed: int, member: str | None = None) -> None:
    """Raise HostileArchiveError if ``packed`` bytes become more than ``limits`` allow."""
    if expanded > limits.total_bytes:
        raise hostile(path, f"it would expand to {expanded:,} bytes, above the limit of {limits.total_bytes:,}", member)
    if expanded > limits.ratio_from_bytes and expanded > limits.ratio * packed:
        problem = f"{packed:,} bytes would expand to {expanded:,}, more than {limits.ratio} times: a decompression bomb"
        raise hostile(path, problem, member)


def check_count(path: Path, limits: ReadLimits, count: int) -> None:
    """Raise HostileArchiveError if an archive has more members than ``limits`` allow."""
    if count > limits.members:
        raise hostile(path, f"{count:,} members, above the limit of {limits.members:,}")
