"""Headers of a tar file (POSIX ustar and pax) that an archive may use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from marsmith.archive.members import hostile
from marsmith.errors import ArchiveError

BLOCK: Final = 512
_REFUSED_TYPES = {
    b"1": "it is a hard link",
    b"2": "it is a symbolic link",
    b"3": "it is a character device",
    b"4": "it is a block device",
    b"6": "it is a pipe",
    b"7": "it is a contiguous file, which readers treat differently",
    b"g": "it has a global extended header, which would change every member after it",
    b"K": "it is a GNU long link name",
    b"L": "it has a GNU long name, instead of a pax header",
    b"S": "it is a sparse file",
}
# Records that are irrelevant for an archive.
_HARMLESS_PAX = {"mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ")
_MAX_SIZE_DIGITS = 19


@dataclass(frozen=True)
class TarHeader:
    """One header: a file, a folder (its name without the slash), or a pax header for the next member."""

    name: str
    size: int
    kind: Literal["file", "folder", "pax"]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.kind == "folder"


def parse_header(path: Path, block: bytes, pax: Mapping[str, str]) -> TarHeader:
    """Parse one block of 512 bytes, with the records of the preceding pax header.

    Raises:
        HostileArchiveError: the type or the description of a member is not allowed in an archive.
        ArchiveError: the block is not a tar header.
    """
    name = _name(path, block)
    _check_block(path, block)
    type_flag = block[156:157]
    if type_flag in _REFUSED_TYPES:
        raise hostile(path, _REFUSED_TYPES[type_flag], name)
    size = _octal(path, name, block[124:136])
    if type_flag == b"x":
        if pax:
            raise hostile(path, "it has two extended headers", name)
        return TarHeader(name, size, "pax")
    name = pax.get("path", name)
    size = _pax_size(path, name, pax["size"]) if "size" in pax else size
    if type_flag == b"5":
        if size:
            raise hostile(path, "it is a folder, with content", name)
        return TarHeader(name.removesuffix("/"), 0, "folder")
    if type_flag not in {b"0", b"\0"}:
        raise hostile(path, f"its type {type_flag!r} is none that an archive may hold", name)
    return TarHeader(name, size, "file")


def parse_pax(path: Path, name: str, content: bytes) -> dict[str, str]:
    """Parse the records of a pax header; only records for plain files are allowed."""
    records: dict[str, str] = {}
    position = 0
    while position < len(content):
        match = _PAX_RECORD.match(content, position)
        end = position + int(match[1]) if match else 0
        key, equals, value = content[match.end() : end - 1].partition(b"=") if match else (b"", b"", b"")
        if not equals or end > len(content) or content[end - 1 : end] != b"\n":
            raise hostile(path, "its extended header is malformed", name)
        word = key.decode(errors="backslashreplace")
        if word not in _HARMLESS_PAX | {"path", "size"}:
            raise hostile(path, f"its extended header has the record {word!r}, which no archive needs", name)
        if word in records:
            raise hostile(path, f"its extended header has the record {word!r} twice", name)
        records[word] = _text(path, value)
        position = end
    return records


def _check_block(path: Path, block: bytes) -> None:
    stated = block[148:156].rstrip(b"\0 ").lstrip(b" ")
    actual = sum(block) - sum(block[148:156]) + 8 * 0x20
    if not re.fullmatch(rb"[0-7]{1,8}", stated) or int(stated, 8) != actual:
        raise ArchiveError(f"{path.name}: not a tar file, or a damaged header", tip="copy or build it again")
    if block[257:263] not in {b"ustar\0", b"ustar "}:
        raise hostile(path, "a header in the format of before 1988, which readers treat differently")


def _name(path: Path, block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    # GNU headers have times in the place of the beginning of a long name in POSIX headers.
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(path, prefix + b"/" + name if prefix else name)


def _text(path: Path, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise hostile(path, "the name is not valid UTF-8", raw.decode(errors="backslashreplace")) from None


def _octal(path: Path, name: str, field: bytes) -> int:
    if field[0] & 0x80:
        raise hostile(path, "its size is in GNU's base-256 form, instead of a pax header", name)
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise hostile(path, "its size is not a number", name)
    return int(digits, 8)


def _pax_size(path: Path, name: str, text: str) -> int:
    if not re.fullmatch(rf"[0-9]{{1,{_MAX_SIZE_DIGITS}}}", text, re.ASCII):
        raise hostile(path, "the size in its extended header is not a number", name)
    return int(text)
