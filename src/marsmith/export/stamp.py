"""Stamps: whether a product is still current, by a list of its inputs beside it.

A file with the recorded size and modification time counts as unchanged. Otherwise its digest decides, so that a new
checkout or a touched file does not cause a build.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import marsmith
from marsmith.files import sha256, write_atomically
from marsmith.json_reader import read_json
from marsmith.project import is_installed_wheel


@dataclass(frozen=True)
class FileStamp:
    """One file: path (relative in the project), size in bytes, modification time in ns, SHA-256."""

    path: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path, root: Path) -> FileStamp:
        """Read and stamp a file. A file in ``root`` has a relative path, so that a project can be moved."""
        real = path.resolve()
        name = real.relative_to(root) if real.is_relative_to(root) else real
        status = real.stat()
        return cls(str(name), status.st_size, status.st_mtime_ns, sha256(real))

    def holds(self, root: Path) -> bool:
        """Return whether the file still has the stamped content."""
        path = root / self.path
        try:
            status = path.stat()
        except OSError:
            return False
        if status.st_size != self.size:
            return False
        return status.st_mtime_ns == self.mtime_ns or sha256(path) == self.sha256


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return an identification of marsmith's own modules, because other versions may build different files.

    It is the version of an installed wheel, or one SHA-256 over the modules of a checkout.
    """
    if is_installed_wheel():
        return marsmith.__version__
    package = Path(marsmith.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if "cli" not in path.relative_to(package).parts:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def write_stamp(path: Path, inputs: Mapping[str, Any], files: Iterable[Path], root: Path) -> None:
    """Record ``inputs`` (any JSON) and ``files`` of a product.

    They include the product, because a changed product is stale.
    """
    stamps = [asdict(FileStamp.of(file, root)) for file in sorted(set(files))]
    write_atomically(path, json.dumps({"inputs": dict(inputs), "files": stamps}, indent=1))


def recorded_digest(path: Path, file: Path, root: Path) -> str | None:
    """Return the SHA-256 of one of the files in the stamp at ``path``; None if there is none."""
    try:
        files = [FileStamp(**entry) for entry in read_json(path.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((each.sha256 for each in files if (root / each.path).resolve() == file.resolve()), None)


def is_current(path: Path, inputs: Mapping[str, Any], root: Path) -> bool:
    """Return whether the stamp at ``path`` has the same inputs and all its files are unchanged."""
    try:
        stamp = read_json(path.read_text(encoding="utf-8"))
        files = [FileStamp(**entry) for entry in stamp["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(stamp.get("inputs") == json.loads(json.dumps(dict(inputs)))) and all(file.holds(root) for file in files)
