"""Output of commands: results on stdout (text or JSON), progress on stderr."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from marsmith.errors import UsageError
from marsmith.names import is_hidden


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, which every verb that reads data has."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def check_deadline(seconds: float) -> None:
    """Check ``--deadline``; raises UsageError if it is not positive."""
    if not 0 < seconds < math.inf:
        raise UsageError(f"--deadline must be more than 0 seconds, not {seconds:g}")


def print_json(value: object) -> None:
    """Print ``value`` on stdout as indented JSON, with keys in their own order."""
    print(json_text(value, indent=2))


def json_text(value: object, indent: int | None = None) -> str:
    """Return ``value`` as JSON, with control, bidirectional and unencodable characters escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(json.dumps(c)[1:-1] if c != "\n" and is_hidden(c) else c for c in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a plain table on stdout; columns are as wide as their content, so that awk can cut them."""
    texts = [list(columns), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    for line in texts:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_fields(fields: Mapping[str, Any]) -> None:
    """Print ``name  value`` lines on stdout, aligned."""
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        print(f"{name:<{width}}  {printable(str(value))}".rstrip())


def printable(text: str) -> str:
    """Replace characters that control a terminal or hide text: texts in an archive are not trusted."""
    return "".join(json.dumps(c)[1:-1] if is_hidden(c) else c for c in text)


def printable_lines(text: str) -> str:
    """Apply ``printable`` to each line, and keep line breaks and tabs."""
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def say(text: str) -> None:
    """Print lines on stdout that may quote an archive or a server."""
    print(printable_lines(text))


def note(message: str) -> None:
    """Print a progress line on stderr."""
    print(printable_lines(message), file=sys.stderr, flush=True)


@contextmanager
def byte_progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """Return a callback that shows the number of bytes done, on stderr; the line disappears at the end.

    None if stderr is not a terminal. Under 100 MB nothing is shown, because it would be too short to read.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=total > 100_000_000)
