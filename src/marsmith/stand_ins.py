"""What lies under the name of a binary file instead of the file: a pointer, a page of HTML, nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Both are text that a checkout leaves where the content was not fetched; git-lfs's own limit for one is 1024 bytes.
_POINTERS = (
    (b"version https://git-lfs.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"version https://hawser.github.com/spec/", "git-lfs", "git lfs pull"),
    (b"/annex/objects/", "git-annex", "git annex get"),
)
_POINTER_BYTES = 1024
_MARKUP = ((b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))


@dataclass(frozen=True)
class StandIn:
    """What a file is instead.

    Attributes:
        what: as in "is a git-lfs pointer".
        tip: how to get the file itself.
    """

    what: str
    tip: str


def pointer(content: bytes) -> StandIn | None:
    """Return what a pointer points with, by the content of a file, or its first bytes; None where it is none."""
    for start, tool, command in _POINTERS:
        if content.startswith(start) and len(content) <= _POINTER_BYTES:
            return StandIn(f"is a {tool} pointer", f"fetch the file that it stands for: {command}")
    return None


def pointer_at(path: Path) -> StandIn | None:
    """Return what ``pointer`` says of a file; None for one that cannot be read. Larger files are not opened."""
    try:
        small = path.stat().st_size <= _POINTER_BYTES
    except OSError:
        return None
    return pointer(_head(path)) if small else None


def stand_in(path: Path) -> StandIn | None:
    """Return what lies there instead of a binary file; None where it may be the file, or cannot be read."""
    if path.is_file() and not path.stat().st_size:
        return StandIn("is empty", "copy or download it again")
    head = _head(path)
    markup = next((kind for start, kind in _MARKUP if head.lstrip().lower().startswith(start)), None)
    if markup:
        return StandIn(f"is a page of {markup}", "the download gave a page, of an error or a login: download it again")
    return pointer(head)


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, more than a pointer has; none of a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_POINTER_BYTES + 1)
    except OSError:
        return b""
