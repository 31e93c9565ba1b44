"""The traceback of a worker that ends reaches the log.

TorchServe's frontend reads a worker's output from a pipe. It closes the pipe when it hears of a failed load or of a
closed connection, which may be before it has read the traceback that the worker wrote just before. So the worker waits
after a traceback until the pipe is empty.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import sys
import termios
import time

__all__ = ["ReadBeforeTheEnd", "keep_last_lines"]

# Nothing may read the pipe any more: then the worker ends without waiting longer.
LONGEST_S = 2.0
_POLL_S = 0.001


def keep_last_lines() -> None:
    """Let the worker wait after each traceback that it writes to standard output from now on.

    Without a log handler that writes there, it does nothing: nobody but TorchServe's worker has one.
    """
    root = logging.getLogger()
    writes = any(isinstance(one, logging.StreamHandler) and one.stream is sys.stdout for one in root.handlers)
    if writes and not any(isinstance(one, ReadBeforeTheEnd) for one in root.handlers):
        root.addHandler(ReadBeforeTheEnd())


class ReadBeforeTheEnd(logging.Handler):
    """Comes after the handler that writes, and waits until a traceback has been read."""

    def emit(self, record: logging.LogRecord) -> None:
        """Wait if the record has a traceback."""
        if record.exc_info:
            _wait_until_read(sys.stdout.fileno())


def _wait_until_read(pipe: int) -> None:
    late = time.monotonic() + LONGEST_S
    while _unread_bytes(pipe) and time.monotonic() < late:
        time.sleep(_POLL_S)


def _unread_bytes(pipe: int) -> int:
    """Return the bytes in a pipe; 0 for other files."""
    try:
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return 0
        return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0
