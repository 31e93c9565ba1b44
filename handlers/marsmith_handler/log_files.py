"""The files of a log: lines at the end of one, which is moved aside by size and by age; older ones are compressed."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HOUR_S, DAY_S = 3600.0, 86_400.0


@dataclass(frozen=True)
class Rotation:
    """When a file is moved aside, and what becomes of it.

    The newest one moved aside is ``<path>.1``, so that who follows the log finds the rest of it; older ones are
    ``<path>.2.gz`` and so on.

    Attributes:
        max_bytes: largest size.
        files: number of files that are kept aside.
        max_age_s: largest age of its first line, in seconds; None: any.
        keep_s: age of its last line at which a file aside is removed, in seconds; None: any.
    """

    max_bytes: int
    files: int = 1
    max_age_s: float | None = None
    keep_s: float | None = None


def append(path: Path, line: bytes, rotation: Rotation) -> None:
    """Write a line, after moving the file aside if it is due; only the holder of the log's lock may call it."""
    size = path.stat().st_size if path.exists() else 0
    if size and (size + len(line) > rotation.max_bytes or _is_old(path, rotation.max_age_s)):
        _move_aside(path, rotation.files)
        _remove_old(path, rotation)
    with path.open("ab+") as file:
        file.write(_line_end(file) + line)


def aside(path: Path, number: int) -> Path:
    """Return the name of a file that was moved aside, 1 for the newest."""
    return path.with_name(f"{path.name}.{number}{'' if number == 1 else '.gz'}")


def _move_aside(path: Path, files: int) -> None:
    for number in range(files, 1, -1):
        newer, place = aside(path, number - 1), aside(path, number)
        if number > 2 and newer.exists():
            newer.replace(place)
        elif number == 2 and newer.exists():
            _compress(newer, place)
    path.replace(aside(path, 1))


def _compress(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    with source.open("rb") as plain, gzip.open(temporary, "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)
    # Its age is that of its last line.
    shutil.copystat(source, temporary)
    temporary.replace(target)


def _remove_old(path: Path, rotation: Rotation) -> None:
    if rotation.keep_s is None:
        return
    for number in range(1, rotation.files + 1):
        with suppress(FileNotFoundError):
            if time.time() - aside(path, number).stat().st_mtime > rotation.keep_s:
                aside(path, number).unlink()


def _is_old(path: Path, max_age_s: float | None) -> bool:
    if max_age_s is None:
        return False
    with path.open("rb") as file:
        first = file.readline()
    try:
        return bool(time.time() - json.loads(first)["time"] > max_age_s)
    except (ValueError, TypeError, KeyError):
        # A damaged or redacted line has no time.
        return time.time() - path.stat().st_mtime > max_age_s


def _line_end(file: BinaryIO) -> bytes:
    """Return what ends the line of a worker that was killed while it wrote."""
    if file.seek(0, 2) == 0:
        return b""
    file.seek(-1, 2)
    return b"" if file.read(1) == b"\n" else b"\n"
