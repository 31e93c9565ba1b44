"""Lines for a file, written by a thread of their own: whoever adds one never waits, neither for a disk nor a lock."""

from __future__ import annotations

import atexit
import fcntl
import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from marsmith_handler.log_files import Rotation, append

logger = logging.getLogger(__name__)

MOST_WAITING = 512
MOST_WAITING_BYTES = 64 * 1024 * 1024
# How long the end of a worker waits for its last lines, in seconds.
_LAST_LINES_S = 2.0


class LogWriter:
    """Appends lines to a file that all workers of the machine may share, and counts those that it has dropped."""

    def __init__(
        self, path: Path, rotation: Rotation, most: int = MOST_WAITING, most_bytes: int = MOST_WAITING_BYTES
    ) -> None:
        """Write nothing yet.

        Args:
            path: the file.
            rotation: when it is moved aside.
            most: lines that may wait.
            most_bytes: what the waiting lines may hold in memory.
        """
        self._path = path
        self._rotation = rotation
        self._most, self._most_bytes = most, most_bytes
        self._waiting: deque[tuple[Callable[[int], bytes], int]] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._complained = False

    def add(self, make: Callable[[int], bytes], size: int) -> None:
        """Have a line written soon; drop it if too much waits already.

        Args:
            make: makes the line, in the thread that writes; gets the number of lines dropped until now.
            size: of what ``make`` holds in memory, in bytes.
        """
        with self._changed:
            if len(self._waiting) >= self._most or self._waiting_bytes + size > self._most_bytes:
                self._dropped += 1
                return
            self._waiting.append((make, size))
            self._waiting_bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="prediction-log", daemon=True)
                self._thread.start()
                atexit.register(self.flush, _LAST_LINES_S)
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until all lines added so far are written; return whether they are."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                self._writing = True
                make, size = self._waiting.popleft()
                dropped = self._dropped
            try:
                self._append(make(dropped))
            except Exception as error:
                self._complain(error)
            del make
            with self._changed:
                self._writing = False
                self._waiting_bytes -= size
                self._changed.notify_all()

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            logger.warning("the prediction log cannot be written: %s", ascii(f"{type(error).__name__}: {error}"))
        self._complained = True

    def _append(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: another worker may have moved the file away since.
        with self._path.with_name(self._path.name + ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            append(self._path, line, self._rotation)
