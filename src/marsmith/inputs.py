"""Inputs of a request: a file, standard input, or a file of an installed package."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from marsmith.errors import UsageError
from marsmith.names import did_you_mean
from marsmith.packages import install_tip
from marsmith.stand_ins import pointer

STDIN = "-"
PACKAGE = "package:"
UNKNOWN = "application/octet-stream"

# First bytes of kinds of files: content is more reliable than names.
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
)
# Not Python's mimetypes: they depend on versions and on files of the machine, and an archive records the type.
_SUFFIXES = {
    ".json": "application/json",
    ".txt": "text/plain",
    ".csv": "text/csv",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".npy": UNKNOWN,
}


@dataclass(frozen=True)
class Input:
    """Content of one request.

    Attributes:
        name: name of the file without folders; ``stdin`` for standard input.
        path: the file; None for standard input.
        body: content.
        content_type: type by its content, then by its name.
    """

    name: str
    path: Path | None
    body: bytes
    content_type: str


def read_input(reference: str, root: Path) -> Input:
    """Read an input.

    Args:
        reference: a path (relative to ``root``), ``-`` for standard input, or ``package:NAME/PATH`` for a file of the
            installed package NAME, which is not imported.
        root: folder of relative paths.

    Raises:
        UsageError: the file or package does not exist, or the file cannot be read.
    """
    if reference == STDIN:
        body = sys.stdin.buffer.read()
        return Input("stdin", None, body, guess_content_type("stdin", body))
    path = _in_package(reference) if reference.startswith(PACKAGE) else root / reference
    body = _content(path)
    instead = pointer(body)
    if instead:
        raise UsageError(f"{path} {instead.what}, not the input itself", tip=instead.tip)
    return Input(path.name, path, body, guess_content_type(path.name, body))


def guess_content_type(name: str, body: bytes) -> str:
    """Return the content type by the first bytes, else by the name; ``application/octet-stream`` by default."""
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "image/webp"
    by_content = next((kind for magic, kind in _MAGIC if body.startswith(magic)), None)
    return by_content or _SUFFIXES.get(Path(name).suffix.lower(), UNKNOWN)


def suffix_of(content_type: str) -> str:
    """Return the usual suffix of a content type; empty for an unknown type."""
    return next((suffix for suffix, kind in _SUFFIXES.items() if kind == content_type != UNKNOWN), "")


def _in_package(reference: str) -> Path:
    package, slash, inner = reference.removeprefix(PACKAGE).partition("/")
    parts = inner.split("/")
    # A dotted name would import the parent package.
    if not slash or not package.isidentifier() or not all(parts) or ".." in parts:
        raise UsageError(
            f"{reference!r} does not name a file in a package",
            tip="write package:NAME/PATH, as in package:skimage/data/cat.png",
        )
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"{reference!r}: no package {package!r} is installed",
            tip=f"{install_tip(package)}; a file of the project is named without package:",
        )
    found = [Path(folder, inner) for folder in spec.submodule_search_locations]
    return next((path for path in found if path.is_file()), found[0])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        neighbours = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no such file: {path}{did_you_mean(path.name, neighbours)}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
