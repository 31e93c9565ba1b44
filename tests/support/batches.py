"""Small batches: an archive whose handler needs no torch, inputs, and what a run has written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from support.runner_archives import CONFIG, make_archive

# Replies with the length of the input; refuses, dies or waits if the input says so.
HANDLER = """
import os
import time


def one(body, context, index):
    if body.startswith(b"bad"):
        context.set_response_status(422, "", index)
        return {"code": 422, "message": "a bad one"}
    if body.startswith(b"poison"):
        os._exit(9)
    if body.startswith(b"die once"):
        marker = body[len(b"die once "):].decode()
        if not os.path.exists(marker):
            open(marker, "w").close()
            os._exit(7)
    if body.startswith(b"wait"):
        time.sleep(1000)
    return {"short": 1 / (1 + len(body)), "long": 1 - 1 / (1 + len(body))}


def handle(data, context):
    return data and [one(bytes(each["body"]), context, index) for index, each in enumerate(data)]
"""


def light_archive(folder: Path, *, config: str = CONFIG, handler: str = HANDLER) -> Path:
    """Lay out an archive, as a folder, with a batch size of 4."""
    return make_archive(folder, handler, config=config)


def write_inputs(folder: Path, bodies: Iterable[bytes]) -> Path:
    """Write inputs as ``000.bin`` and so on, all of the same age."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, body in enumerate(bodies):
        (folder / f"{number:03}.bin").write_bytes(body)
    return folder


def batch_command(archive: Path, *arguments: object) -> list[str]:
    """Return the command line of a batch."""
    return [sys.executable, "-m", "marsmith", "batch", str(archive), *map(str, arguments)]


def run_batches(commands: Sequence[Sequence[str]], timeout_s: float = 240.0) -> list[tuple[int, str]]:
    """Run several commands at once; return exit codes and what they printed on stderr."""
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=timeout_s)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, said, strict=True)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of all parts, in the order of their names."""
    import pyarrow.parquet as pq

    return [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def parts_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all parts, and of ``_SUCCESS``, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(("part-", "_SUCCESS"))}
