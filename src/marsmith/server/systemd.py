"""systemd's notification protocol: datagrams of ``NAME=value`` lines about the state of the service.

https://www.freedesktop.org/software/systemd/man/sd_notify.html
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class ServiceManager:
    """The service manager that started this process; without an address no messages are sent.

    Attributes:
        address: address of a unix datagram socket; one that begins with ``@`` is abstract.
        watchdog_s: maximum interval of signs of life, in seconds; None: none are required.
    """

    address: str | None = None
    watchdog_s: float | None = None
    _last_sign: float = field(default=0.0, init=False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Take the variables of systemd out of ``environment``, so that children do not send messages."""
        address = environment.pop("NOTIFY_SOCKET", None)
        interval = environment.pop("WATCHDOG_USEC", "")
        for_us = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = for_us and interval.isascii() and interval.isdigit() and int(interval) > 0
        return cls(address or None, int(interval) / 1e6 if wanted else None)

    def ready(self, status: str) -> None:
        """Report that the service is ready."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Report the current activity in one line."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """Report that the service ends on purpose."""
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """Send a sign of life, if one is due."""
        if self.watchdog_s is not None and time.monotonic() - self._last_sign >= self.watchdog_s / 3:
            self._last_sign = time.monotonic()
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        text = "\n".join(" ".join(line.split("\n")) for line in lines)
        # A manager that does not listen must not stop the service.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender, suppress(OSError):
            sender.sendto(text.encode(), address)
