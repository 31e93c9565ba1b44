"""Tell systemd how the service is: its notification protocol, a datagram of ``NAME=value`` lines.

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
    """Whoever started this process and wants to hear how it is; nobody where the address is None.

    Attributes:
        address: of a unix datagram socket; one that begins with ``@`` is abstract.
        watchdog_s: how often it wants a sign of life at least, in seconds; None: never.
    """

    address: str | None = None
    watchdog_s: float | None = None
    _last_sign: float = field(default=0.0, init=False)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Take the variables of systemd out of ``environment``, so that no child speaks for this process."""
        address = environment.pop("NOTIFY_SOCKET", None)
        interval = environment.pop("WATCHDOG_USEC", "")
        for_us = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = for_us and interval.isascii() and interval.isdigit() and int(interval) > 0
        return cls(address or None, int(interval) / 1e6 if wanted else None)

    def ready(self, status: str) -> None:
        """Say that the service works."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Say in one line what goes on."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """Say that the service ends on purpose."""
        self._send("STOPPING=1", "STATUS=stopping")

    def alive(self) -> None:
        """Give a sign of life, where one is due."""
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
