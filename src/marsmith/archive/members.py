"""Members of an archive: their names, the interface of all kinds of archives, and the limits of reading.

An archive may come from anywhere, so a reader trusts none of its claims. Names, sizes and counts are checked before
anything is unpacked, and unpacked bytes are counted again.
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
    """One file of an archive before it is written.

    Attributes:
        name: posix path within the archive, such as ``model.pt`` or ``MAR-INF/export.json``.
        source: file with the content, or the content itself.
    """

    name: str
    source: Path | bytes

    def sha256(self) -> str:
        """Return the SHA-256 of the content in hex; a file is read in constant memory."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return files.sha256(self.source)


def name_problem(name: str) -> str | None:
    """Return what is wrong with a member's name; None if it is valid.

    A valid name is a relative posix path that stays inside the target folder on any machine, and that ``sha256sum``
    prints unchanged.
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
    """Return the name as a file system sees it that ignores case and Unicode normalisation."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


Kind = Literal["mar", "tar.gz", "folder"]
Method = Literal["stored", "deflated", "file"]

CHUNK_BYTES = 1 << 20
_DRIVE = re.compile("[A-Za-z]:")
TIP = "do not serve this archive; build it again from its sources, or ask its author"


@dataclass(frozen=True)
class MemberInfo:
    """One file of an archive, as the archive describes it.

    Attributes:
        name: posix path within the archive.
        size: size of the content, in bytes.
        compressed_size: size in the archive, in bytes; for tar.gz and folders the same as ``size``.
        method: compression method; ``file`` in tar.gz and folders.
        crc: CRC-32 of the content; None if this kind of archive has none.
    """

    name: str
    size: int
    compressed_size: int
    method: Method
    crc: int | None


@dataclass(frozen=True)
class ReadLimits:
    """Limits for reading an archive.

    Attributes:
        members: maximum number of files and folders.
        total_bytes: maximum size of all contents together, in bytes.
        ratio: maximum ratio of content to archive size, for content above ``ratio_from_bytes``.
        ratio_from_bytes: content up to this size is never refused for its ratio, in bytes.
        text_bytes: maximum size of a manifest, a list of digests or another text that marsmith reads, in bytes.
    """

    members: int = 10_000
    total_bytes: int = 1 << 40
    ratio: int = 200
    ratio_from_bytes: int = 64 << 20
    text_bytes: int = 4 << 20


class MemberSource(Protocol):
    """An archive of one kind with a checked structure."""

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """All files by name, in the order of the archive."""

    def open_member(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open one member as a stream; wrong content raises at its end."""

    def walk(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield every member with its content in one pass; each stream is valid until the next one is yielded."""

    def layout_problems(self) -> list[str]:
        """Return where the structure differs from marsmith's own."""


def hostile(path: Path, problem: str, member: str | None = None) -> HostileArchiveError:
    """Create the error for a dangerous or inconsistent structure, with archive and member."""
    where = f"{path.name}: member {member!r}" if member is not None else path.name
    return HostileArchiveError(f"{where}: {problem}", tip=TIP)


def check_name(path: Path, name: str) -> None:
    """Raise HostileArchiveError if a member of this name could be written outside the target folder."""
    if "\0" in name:
        raise hostile(path, "the name holds a NUL byte", name)
    if _DRIVE.match(name):
        raise hostile(path, "the name begins with a drive letter", name)
    if problem := name_problem(name):
        raise hostile(path, problem, name)


def check_collisions(path: Path, files: Iterable[str], folders: Iterable[str] = ()) -> None:
    """Raise HostileArchiveError if two names could be one file, or if a file is also a folder.

    Args:
        path: the archive.
        files: names of its files, in order, including duplicates.
        folders: names of its folders, if it lists them.
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
    """Record the folders above ``name``; two spellings of one folder are refused."""
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
    """Raise HostileArchiveError if ``packed`` bytes expand beyond ``limits``."""
    if expanded > limits.total_bytes:
        raise hostile(path, f"it would expand to {expanded:,} bytes, above the limit of {limits.total_bytes:,}", member)
    if expanded > limits.ratio_from_bytes and expanded > limits.ratio * packed:
        problem = f"{packed:,} bytes would expand to {expanded:,}, more than {limits.ratio} times: a decompression bomb"
        raise hostile(path, problem, member)


def check_count(path: Path, limits: ReadLimits, count: int) -> None:
    """Raise HostileArchiveError if an archive has more members than ``limits`` allow."""
    if count > limits.members:
        raise hostile(path, f"{count:,} members, above the limit of {limits.members:,}")
