"""Remove lines from a prediction log that workers write meanwhile: personal data must go when somebody asks for it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

from marsmith import files
from marsmith.predictions.log import Prediction, files_of, read_line


def forget(path: Path, is_meant: Callable[[Prediction], bool]) -> int:
    """Remove what is meant from a log and from the files that were moved aside; return the number of lines removed.

    Damaged lines are removed too, since nobody can say what they hold. A ``LogFollower`` reads the log again after it.

    Raises:
        OSError: a file cannot be read or replaced; it is then as it was.
    """
    # Workers hold the same lock for each line.
    with files.lock(path.with_name(path.name + ".lock")):
        return sum(_rewritten(file, is_meant) for file in files_of(path) if file.exists())


def _rewritten(path: Path, is_meant: Callable[[Prediction], bool]) -> int:
    is_compressed = path.suffix == ".gz"
    content = path.read_bytes()
    lines = (gzip.decompress(content) if is_compressed else content).splitlines(keepends=True)
    kept = [line for line in lines if _stays(line, is_meant)]
    if len(kept) < len(lines):
        rest = b"".join(kept)
        age = path.stat()
        files.write_atomically(path, gzip.compress(rest, 1, mtime=0) if is_compressed else rest)
        # The retention counts from the last line.
        os.utime(path, ns=(age.st_atime_ns, age.st_mtime_ns))
    return len(lines) - len(kept)


def _stays(line: bytes, is_meant: Callable[[Prediction], bool]) -> bool:
    try:
        return not is_meant(read_line(line))
    except ValueError:
        return False
