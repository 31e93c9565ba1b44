"""Metric lines: together, in order, none lost; all other lines at once."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from marsmith_handler.gathered_lines import VARIABLE, GatheredLines
from support.projects import REPOSITORY

HANDLERS = REPOSITORY / "handlers"


class Stream(io.StringIO):
    """Keeps each write apart."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def logger(stream: Stream) -> logging.Logger:
    """A logger of its own that writes to the stream, through gathered lines that only ``flush`` writes."""
    handler: logging.StreamHandler[Any] = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(GatheredLines(handler, 3600))
    made = logging.Logger("worker", logging.INFO)
    made.addHandler(handler)
    return made


def gathered(logger: logging.Logger) -> GatheredLines:
    (found,) = [one for one in logger.handlers[0].filters if isinstance(one, GatheredLines)]
    return found


def test_metric_lines_are_one_write_and_other_lines_pass_at_once(logger: logging.Logger, stream: Stream) -> None:
    logger.info("[METRICS]a.ms:1|#Level:Model|#type:GAUGE|#hostname:h,1")
    logger.info("loaded")
    logger.info("[METRICS]b.ms:2|#Level:Model|#type:GAUGE|#hostname:h,1")
    logger.info("Backend received inference at: %d", 17)
    assert stream.getvalue() == "loaded\n"
    stream.writes.clear()
    gathered(logger).flush()
    assert len(stream.writes) == 1
    assert [line.partition(".")[0] for line in stream.writes[0].splitlines()] == ["[METRICS]a", "[METRICS]b"]
    gathered(logger).flush()
    assert len(stream.writes) == 1


def test_no_line_is_lost_while_others_are_written(logger: logging.Logger, stream: Stream) -> None:
    written = 2000
    done = threading.Event()

    def flush_all_the_time() -> None:
        while not done.is_set():
            gathered(logger).flush()

    flusher = threading.Thread(target=flush_all_the_time)
    flusher.start()
    for number in range(written):
        logger.info(f"[METRICS]n.Count:{number}|")
    done.set()
    flusher.join()
    gathered(logger).flush()
    assert [int(line.split(":")[1][:-1]) for line in stream.getvalue().splitlines()] == list(range(written))


WORKER = """
import logging, sys
sys.path.insert(0, sys.argv[1])
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
from marsmith_handler.gathered_lines import gather_metric_lines
one = gather_metric_lines()
assert gather_metric_lines() is one
logging.info("[METRICS]a.ms:1|")
print("after", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("seconds", "metric_comes"), [("3600", "last"), ("0", "first"), ("no number", "last")])
def test_the_variable_sets_how_long_and_the_end_of_the_process_writes_the_rest(seconds: str, metric_comes: str) -> None:
    command = [sys.executable, "-c", WORKER, str(HANDLERS)]
    ran = subprocess.run(command, env={VARIABLE: seconds}, input="", capture_output=True, text=True, check=True)
    lines = ["[METRICS]a.ms:1|", "after"]
    assert ran.stdout.splitlines() == (lines if metric_comes == "first" else lines[::-1])


def test_lines_are_written_though_nothing_follows(stream: Stream) -> None:
    handler: logging.StreamHandler[Any] = logging.StreamHandler(stream)
    gathered_lines = GatheredLines(handler, 0.01)
    handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "[METRICS]a.ms:1|", None, None))
    deadline = time.monotonic() + 10
    while not stream.writes and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stream.writes == ["[METRICS]a.ms:1|\n"]
    assert gathered_lines in handler.filters
