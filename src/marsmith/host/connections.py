"""Connections of clients: uvicorn's HTTP protocol with limits on slow and endless requests.

uvicorn itself waits for the rest of a request for ever, and takes a head of any size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 64 << 10
# The name of our extension in an ASGI scope: an ``Exchange``.
EXTENSION = "marsmith.exchange"


class Exchange:
    """What the application learns of a request beside ASGI.

    Attributes:
        headers: headers as they were sent; ASGI's have lower-case names.
        on_gone: called when the client goes away before it has its reply.
    """

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.on_gone: Callable[[], object] | None = None


class LimitedProtocol(HttpToolsProtocol):
    """One connection. A request must arrive as a whole within ``request_s``, and its head within ``LARGEST_HEAD``.

    Attributes:
        request_s: time for a whole request, and for the first byte of a connection, in seconds.
    """

    request_s: ClassVar[float] = 60.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._exchange = Exchange()
        self._late: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived, unless the head of the request is too large."""
        if self._head_bytes >= 0:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > LARGEST_HEAD and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._exchange = Exchange()
        # ASGI's type knows only mappings there.
        self.scope["extensions"] = {EXTENSION: self._exchange}  # type: ignore[dict-item]
        self._head_bytes = max(self._head_bytes, 0)
        if self._late is None:
            self._expect()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the header as it was sent; what follows a chunked body is not a header that a front has seen."""
        if self._head_bytes < 0:
            return
        self._exchange.headers.append((name, value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Count no further bytes: the application limits the body."""
        self._head_bytes = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait no longer: the request is whole."""
        self._stop_clock()
        self._head_bytes = 0
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that nobody waits for the reply any more."""
        self._stop_clock()
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete and self._exchange.on_gone is not None:
            self._exchange.on_gone()

    def _expect(self) -> None:
        self._late = self.loop.call_later(self.request_s, self._too_late)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            has_begun = self.cycle is not None and not self.cycle.response_complete
            self._refuse(b"408 Request Timeout" if has_begun or self._head_bytes > 0 else None)

    def _refuse(self, status: bytes | None) -> None:
        """Close the connection, after a reply if a request has begun."""
        if status is not None:
            self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
        self.transport.close()
