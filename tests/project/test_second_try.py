"""The plugin of CI that tells a flaky test from a broken one, run on small suites of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.projects import REPOSITORY

SUITE = """
from pathlib import Path

def test_good():
    pass

def test_flaky():
    seen = Path(__file__).with_name("seen")
    first = not seen.exists()
    seen.touch()
    assert not first, "only the first time"

{more}
"""
BROKEN = """
def test_broken():
    assert 1 == 2, "each time"
"""


def run(tmp_path: Path, more: str, *options: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(REPOSITORY / "tests" / "support" / "second_try.py", tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_suite.py").write_text(SUITE.format(more=more))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("processes", [(), ("--numprocesses", "2")])
def test_a_test_that_passes_alone_is_named_as_flaky_and_the_run_passes(
    tmp_path: Path, processes: tuple[str, ...]
) -> None:
    done = run(tmp_path, "", "--second-try", *processes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FLAKY: test_suite.py::test_flaky" in done.stdout.splitlines()
    assert "AssertionError: only the first time" in done.stdout
    assert "FAILED TWICE" not in done.stdout


def test_a_test_that_fails_twice_fails_the_run_and_shows_both_tracebacks(tmp_path: Path) -> None:
    done = run(tmp_path, BROKEN, "--second-try")
    assert done.returncode == 1
    assert {"FLAKY: test_suite.py::test_flaky", "FAILED TWICE: test_suite.py::test_broken"} <= {
        *done.stdout.splitlines()
    }
    shown = done.stdout.partition("FAILED TWICE: test_suite.py::test_broken")[2]
    assert shown.count('assert 1 == 2, "each time"') == 2


def test_a_suite_that_cannot_be_collected_is_not_tried_again(tmp_path: Path) -> None:
    done = run(tmp_path, "import no_such_module\n", "--second-try")
    assert done.returncode == 2
    assert "second try" not in done.stdout


def test_without_the_option_a_failure_is_a_failure(tmp_path: Path) -> None:
    assert run(tmp_path, "").returncode == 1
