"""Leaving without taking torch apart: the same exit code and output, and everything that must happen at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, sys, tempfile, threading, time
from pathlib import Path
from marsmith.quick_exit import run_and_exit
{torch}
class Late:
    def __del__(self):
        Path("taken-apart").touch()
kept = Late()
def main():
    folder = tempfile.TemporaryDirectory(dir=".", prefix="folder-")
    main.folder = folder
    threading.Thread(target=lambda: (time.sleep(0.2), Path("thread").touch())).start()
    atexit.register(lambda: Path("handler").touch())
    print("output without an end", end="")
    {end}
run_and_exit(main)
"""
WITH_TORCH = "sys.modules['torch'] = sys"


def run(folder: Path, end: str, torch: str = WITH_TORCH) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(torch=torch, end=end)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('some words')", 1, "some words"),
        ("raise ValueError('some words')", 1, "ValueError: some words"),
    ],
)
def test_everything_ends_as_it_always_does(end: str, code: int, words: str, tmp_path: Path) -> None:
    done = run(tmp_path, end)
    assert (done.returncode, done.stdout) == (code, "output without an end")
    assert words in done.stderr
    # The thread was waited for, handlers ran, the temporary folder is gone; no object was finalized.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["handler", "thread"]


def test_without_torch_python_ends_in_its_own_way(tmp_path: Path) -> None:
    assert run(tmp_path, "return 0", torch="").returncode == 0
    assert (tmp_path / "taken-apart").exists()


def test_output_that_nobody_takes_is_still_an_error(tmp_path: Path) -> None:
    program = PROGRAM.format(torch=WITH_TORCH, end="return 0")
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=buffered,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 120
    assert "No space left" in done.stderr
