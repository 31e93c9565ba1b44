"""Duties of a supervisor besides its watch: work that goes on while the server runs, each in a thread of its own.

A duty that raises, or that does not return, changes nothing for the watch or for the other duties.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from marsmith.errors import MarsmithError

# Pause between two ticks, in seconds. After a tick that raised it doubles, up to the longest one.
PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
# A tick is short by contract; one that takes this long is reported.
OVERDUE_S = 60.0
# Time for a tick to end when the supervisor ends, in seconds; the thread ends with the process anyway.
_LAST_TICK_S = 3.0


class Duty(Protocol):
    """Periodic work of a supervisor."""

    @property
    def name(self) -> str:
        """Name for messages."""

    def tick(self) -> None:
        """Do what is due now, and return soon."""

    def close(self) -> None:
        """Stop; what is left undone is left to the next supervisor."""


class DutyThread:
    """Calls one duty again and again.

    Attributes:
        duty: the duty.
    """

    def __init__(self, duty: Duty, tell: Callable[[str], None]) -> None:
        self.duty = duty
        self._tell = tell
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._began: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"duty {duty.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """Stop calling, and close the duty. A tick that does not return is left behind."""
        self._stop.set()
        self._thread.join(_LAST_TICK_S)
        self._guarded(self.duty.close)

    def report_overdue(self) -> None:
        """Report once that a tick has not returned for a long time."""
        began = self._began
        if began is not None and time.monotonic() - began > OVERDUE_S:
            self._tell_once(f"{self.duty.name}: no progress for {OVERDUE_S:g} s; the server is still watched")

    def _run(self) -> None:
        pause_s = PAUSE_S
        while not self._stop.is_set():
            self._began = time.monotonic()
            good = self._guarded(self.duty.tick)
            self._began = None
            pause_s = PAUSE_S if good else min(2 * pause_s, LONGEST_PAUSE_S)
            self._stop.wait(pause_s)

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Return whether the work was done; report an error once."""
        try:
            work()
        except MarsmithError as error:
            self._tell_once(f"{self.duty.name}: {error.message}")
        except Exception as error:  # a duty must not end the watch, whatever it raises
            self._tell_once(f"{self.duty.name}: {error!r}")
        else:
            return True
        return False

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


@contextmanager
def performing(duties: Sequence[Duty], tell: Callable[[str], None]) -> Iterator[tuple[DutyThread, ...]]:
    """Perform duties inside the block.

    Args:
        duties: the duties.
        tell: called with each new problem, as one sentence; from other threads, too.
    """
    threads = tuple(DutyThread(duty, tell) for duty in duties)
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.end()
