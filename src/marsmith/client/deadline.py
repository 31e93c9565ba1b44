"""The moment at which a call ends, whatever it is doing."""

from __future__ import annotations

import time

# What a call is doing, as it is told when there is no time left.
CONNECTING = "connecting"
HANDSHAKE = "in the TLS handshake"
SENDING = "sending the request"
WAITING = "waiting for the reply"
READING = "reading the reply"
RENEWING = "renewing the token"


class Deadline:
    """The moment at which a call ends, whatever it is doing.

    Attributes:
        seconds: how long the call may take in all.
    """

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self.seconds = seconds

    @property
    def left_s(self) -> float:
        """Seconds until then; never negative."""
        return max(0.0, self.seconds - self.elapsed_s)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._began
