"""What a supervisor does for the front: start Envoy again when it has ended, notice new tokens, bound the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from marsmith.server.front import access_log
from marsmith.server.front.bootstrap import ANSWERS_FILE
from marsmith.server.front.door import Front
from marsmith.server.front.process import FrontProcess, Starter


@dataclass
class FrontDuty:
    """The duty to keep the front up.

    Attributes:
        front: the front.
        starter: how to start Envoy.
        tell: called with each event, as one sentence.
        name: name for messages.
        restarts: how often Envoy was started again.
    """

    front: Front
    starter: Starter
    tell: Callable[[str], None]
    name: str = "front"
    restarts: int = 0
    _process: FrontProcess | None = None
    _key_file_ns: int = 0

    def tick(self) -> None:
        """Look at Envoy and at the key file once."""
        if self._process is None or not self._process.is_alive:
            if self.front.ensure_running(self.starter):
                self.restarts += 1
                self.tell("Envoy ended by itself, and was started again")
            self._process = self.front.process
        self._look_at_tokens()
        # Whoever reads the log begins a new one earlier.
        access_log.rotate(self.front.folder / ANSWERS_FILE, 2 * access_log.LARGEST_BYTES)

    def close(self) -> None:
        """Do nothing: whoever stops the server ends Envoy."""

    def _look_at_tokens(self) -> None:
        try:
            changed_ns = self.front.key_file.stat().st_mtime_ns
        except FileNotFoundError:
            # The server requires no tokens, or is starting.
            return
        if changed_ns != self._key_file_ns:
            self.front.notice_new_token()
            self._key_file_ns = changed_ns
