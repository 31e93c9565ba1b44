"""Metric lines of a worker, written together a few times a second instead of several times a batch.

A worker sends a metric as a line of output, flushed at once. Each line wakes a thread of the frontend, on the cores
that the model needs, while the caller waits for the reply. Gathered lines reach the frontend in one write.
docs/explanation/benchmarks.md has the effect.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from typing import TextIO

# Seconds; 0: each line at once, for a program that starts the worker and reads its lines batch by batch.
VARIABLE = "MARSMITH_METRIC_LINES_S"
DEFAULT_S = 0.2
_METRIC = "[METRICS]"
# A line for each batch, which no log shows (config/log4j2.xml).
_UNREAD = "Backend received inference at"


def gather_metric_lines() -> GatheredLines | None:
    """Gather what the root logger writes to standard output, from now on; return None if the time is 0."""
    seconds = _wanted_seconds()
    if seconds <= 0:
        return None
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            known = next((one for one in handler.filters if isinstance(one, GatheredLines)), None)
            return known or GatheredLines(handler, seconds)
    return None


def _wanted_seconds() -> float:
    try:
        return float(os.environ.get(VARIABLE, DEFAULT_S))
    except ValueError:
        return DEFAULT_S


class GatheredLines(logging.Filter):
    """Holds back the metric lines of a log handler and writes them together, ``seconds`` after the first.

    All other lines are written at once. No thread wakes while there is nothing to write.
    """

    def __init__(self, handler: logging.StreamHandler[TextIO], seconds: float) -> None:
        super().__init__()
        self._handler = handler
        self._seconds = seconds
        self._lines: list[str] = []
        self._keeping = threading.Lock()
        self._some = threading.Event()
        handler.addFilter(self)
        atexit.register(self.flush)
        threading.Thread(target=self._write_when_due, name="metric-lines", daemon=True).start()

    def filter(self, record: logging.LogRecord) -> bool:
        """Hold back a metric line; drop the line of each batch that no log shows."""
        message = str(record.msg)
        if message.startswith(_METRIC):
            with self._keeping:
                self._lines.append(self._handler.format(record))
            self._some.set()
            return False
        return not message.startswith(_UNREAD)

    def flush(self) -> None:
        """Write the lines that were held back, in their order."""
        with self._keeping:
            lines, self._lines = self._lines, []
        if not lines:
            return
        self._handler.acquire()
        try:
            self._handler.stream.write("\n".join(lines) + "\n")
            self._handler.stream.flush()
        finally:
            self._handler.release()

    def _write_when_due(self) -> None:
        while True:
            self._some.wait()
            time.sleep(self._seconds)
            # First, so that a line that arrives while the others are written is not lost.
            self._some.clear()
            self.flush()
