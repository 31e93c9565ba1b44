"""One file of an archive, and the names that it may have."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

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
        digest = hashlib.sha256()
        with self.source.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


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
