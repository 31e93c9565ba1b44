"""Remove lines from a prediction log that workers write meanwhile: personal data must go when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from marsmith import files
from marsmith.predictions.log import Prediction, read_line


def forget(path: Path, is_meant: Callable[[Prediction], bool]) -> int:
    """Remove what is meant from a log and from the file that was moved aside; return the number of lines removed.

    Damaged lines are removed too, since nobody can say what they hold. A ``LogFollower`` reads the log again after it.

    Raises:
        OSError: a file cannot be read or replaced; it is then as it was.
    """
    # Workers hold the same lock for each line.
    with files.lock(path.with_name(path.name + ".lock")):
        return sum(_rewritten(file, is_meant) for file in (path.with_name(path.name + ".1"), path) if file.exists())


def _rewritten(path: Path, is_meant: Callable[[Prediction], bool]) -> int:
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _stays(line, is_meant)]
    if len(kept) < len(lines):
        files.write_atomically(path, b"".join(kept))
    return len(lines) - len(kept)


def _stays(line: bytes, is_meant: Callable[[Prediction], bool]) -> bool:
    try:
        return not is_meant(read_line(line))
    except ValueError:
        return False
