"""Stand-ins for a binary file: a git-lfs or git-annex pointer, an HTML page, or an empty file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Both are texts in a checkout whose content was not fetched; git-lfs limits a pointer to 1024 bytes.
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"version https://hawser.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
)
_POINTER_BYTES = 1024
_MARKUP = ((b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))


@dataclass(frozen=True)
class StandIn:
    """The kind of a stand-in.

    Attributes:
        what: description such as "is a git-lfs pointer".
        tip: how to get the file.
    """

    what: str
    tip: str


def pointer(content: bytes) -> StandIn | None:
    """Return the stand-in of a pointer, by the content or first bytes of a file; None if it is not a pointer."""
    for start, tool, command in _POINTERS:
        if content.startswith(start) and len(content) <= _POINTER_BYTES:
            return StandIn(f"is a {tool} pointer", f"fetch the file that it stands for: {command}")
    return None


def pointer_at(path: Path) -> StandIn | None:
    """Return ``pointer`` for a file; None if it cannot be read. Larger files are not opened."""
    try:
        small = path.stat().st_size <= _POINTER_BYTES
    except OSError:
        return None
    return pointer(_head(path)) if small else None


def stand_in(path: Path) -> StandIn | None:
    """Return the stand-in at a path; None if it may be the binary file, or cannot be read."""
    if path.is_file() and not path.stat().st_size:
        return StandIn("is empty", "copy or download it again")
    head = _head(path)
    markup = next((kind for start, kind in _MARKUP if head.lstrip().lower().startswith(start)), None)
    if markup:
        return StandIn(f"is a page of {markup}", "the download gave a page, of an error or a login: download it again")
    return pointer(head)


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, more than a pointer has; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_POINTER_BYTES + 1)
    except OSError:
        return b""
