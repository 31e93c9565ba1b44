"""A traceback is read before the worker that wrote it goes on to its end."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from marsmith_handler import last_lines
from marsmith_handler.last_lines import ReadBeforeTheEnd, keep_last_lines
from support.live_server import until
from support.projects import REPOSITORY

# Tells on standard error how much of its output nobody has read when it goes on.
WORKER = """
import logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
from marsmith_handler import last_lines
last_lines.LONGEST_S = float(sys.argv[2])
last_lines.keep_last_lines()
logging.info("nobody waits for this one")
try:
    1 / 0
except ZeroDivisionError:
    logging.exception("it failed")
print(last_lines._unread_bytes(1), file=sys.stderr, flush=True)
"""


def worker(longest_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(REPOSITORY / "handlers"), str(longest_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_worker_goes_on_when_its_traceback_has_been_read() -> None:
    with worker(600) as process:
        output = process.stdout
        assert output
        assert process.stderr
        until(lambda: last_lines._unread_bytes(output.fileno()) > 100)
        assert "ZeroDivisionError: division by zero" in output.read()
        assert process.stderr.read() == "0\n"


def test_a_worker_whose_output_nobody_reads_ends_all_the_same() -> None:
    with worker(0.01) as process:
        assert process.stderr
        assert int(process.stderr.read()) > 100


def test_what_is_no_pipe_is_not_waited_for() -> None:
    with (REPOSITORY / "README.md").open("rb") as file:
        assert last_lines._unread_bytes(file.fileno()) == 0


def test_logging_that_writes_elsewhere_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root")
    root.addHandler(logging.StreamHandler(sys.stderr))
    monkeypatch.setattr(logging, "getLogger", lambda: root)
    keep_last_lines()
    assert len(root.handlers) == 1
    root.addHandler(logging.StreamHandler(sys.stdout))
    keep_last_lines()
    keep_last_lines()
    assert [type(one) for one in root.handlers[2:]] == [ReadBeforeTheEnd]
