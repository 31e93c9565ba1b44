"""Deadline of a call."""

from __future__ import annotations

import time

# Steps of a call, as timeouts name them.
CONNECTING = "connecting"
HANDSHAKE = "in the TLS handshake"
SENDING = "sending the request"
WAITING = "waiting for the reply"
READING = "reading the reply"
RENEWING = "renewing the token"


class Deadline:
    """The time at which a call ends, in any of its steps.

    Attributes:
        seconds: time limit of the whole call, in seconds.
    """

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self.seconds = seconds

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; never negative."""
        return max(0.0, self.seconds - self.elapsed_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the call."""
        return time.monotonic() - self._began
