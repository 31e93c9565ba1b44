"""HTTP/1.1 connections of a load test, kept open.

A general client spends more processor time on a request than a small model does, on the cores that are measured. This
one writes requests that were built beforehand and parses only the necessary parts of a reply.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import SplitResult, quote, urlsplit

from marsmith.client.deadline import CONNECTING
from marsmith.client.failures import ANSWERED
from marsmith.client.http import HttpReply, check_address, missed, no_address, sendable
from marsmith.client.tokens import TokenAccess
from marsmith.errors import ConnectionFailedError
from marsmith.loadtest.connection import OK, TOKEN_REFUSED, Answer, answer_of
from marsmith.loadtest.shared_requests import SharedRequests

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_GOODBYE_S = 1.0
# Characters that stay as they are when a path is quoted.
_IN_A_PATH = "/?%:@!$&'()*+,;=~"


@dataclass(frozen=True)
class HttpTarget:
    """A REST resource of a model, with the inputs to send.

    Attributes:
        url: URL of the resource, such as ``http://127.0.0.1:8080/predictions/resnet18``.
        bodies: the inputs.
        content_types: one for each input.
        headers: sent with each request.
        deadline_s: time limit for a reply, in seconds.
        tls: TLS settings for https.
        tokens: source of tokens. None: requests carry only ``headers``.
    """

    url: str
    bodies: Sequence[bytes]
    content_types: Sequence[str]
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float = 30.0
    tls: ssl.SSLContext | None = None
    tokens: TokenAccess | None = None

    @property
    def parts(self) -> SplitResult:
        """The parsed URL."""
        return urlsplit(self.url)

    def messages(self, token: str | None = None) -> list[bytes]:
        """Return the complete bytes of the request for each input.

        Raises:
            UsageError: a header is invalid.
            ConnectionFailedError: the URL is invalid.
        """
        headers = {**self.headers, **({"Authorization": f"Bearer {token}"} if token else {})}
        fixed = "".join(f"{name}: {sendable(name, value)}\r\n" for name, value in headers.items())
        first = f"POST {self._path()} HTTP/1.1\r\nHost: {self._authority()}\r\n"
        kinds = [f"Content-Type: {sendable('Content-Type', kind)}\r\n" for kind in self.content_types]
        return [
            f"{first}{kind}Content-Length: {len(body)}\r\n{fixed}\r\n".encode("ascii") + body
            for kind, body in zip(kinds, self.bodies, strict=True)
        ]

    def _path(self) -> str:
        query = f"?{self.parts.query}" if self.parts.query else ""
        return quote(f"{self.parts.path or '/'}{query}", safe=_IN_A_PATH)

    def _authority(self) -> str:
        """Return the host and port for the ``Host`` header, after the URL is validated."""
        check_address(self.url)
        authority = self.parts.netloc.rpartition("@")[2]
        if not authority.isascii():
            raise no_address(self.url, "its host is not ASCII; use the form that begins with xn--")
        return authority


class HttpConnection(asyncio.Protocol):
    """One connection to an HTTP server; it reconnects if the server has closed it."""

    def __init__(self, target: HttpTarget, shared: SharedRequests[list[bytes]]) -> None:
        self._target = target
        self._shared = shared
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None
        self._lost = asyncio.Event()

    @classmethod
    async def open(cls, target: HttpTarget, shared: SharedRequests[list[bytes]]) -> HttpConnection:
        """Connect.

        Raises:
            ConnectionFailedError: the server does not accept connections.
            DeadlineError: the connection was not established in time.
        """
        connection = cls(target, shared)
        try:
            await asyncio.wait_for(connection._connect(), target.deadline_s)
        except TimeoutError:
            raise missed(target.url, target.deadline_s, CONNECTING) from None
        except OSError as error:
            raise ConnectionFailedError(f"nothing answers at {target.url}: {error}", tip="marsmith serve") from None
        return connection

    async def call(self, body: int) -> Answer:
        """Send the input of that index. If the token is refused and there is a newer one, send it once more."""
        answer = await self._send(body, self._target.deadline_s)
        if answer.verdict != TOKEN_REFUSED:
            return answer
        return await self._shared.again(answer, lambda left_s: self._send(body, left_s), self._target.deadline_s)

    async def _send(self, body: int, deadline_s: float) -> Answer:
        try:
            if self._transport is None or self._transport.is_closing():
                await asyncio.wait_for(self._connect(), deadline_s)
        except TimeoutError:
            return Answer("timeout")
        except OSError:
            return Answer("connection refused")
        if self._transport is None:
            return Answer("connection lost")
        loop = asyncio.get_running_loop()
        self._waiting = loop.create_future()
        # Not asyncio.wait_for: its futures and callbacks take processor time from the model, on the cores that are
        # measured.
        deadline = loop.call_later(deadline_s, self._give_up)
        try:
            self._transport.write(self._shared.content[body])
            return await self._waiting
        finally:
            deadline.cancel()

    async def close(self) -> None:
        """Close the connection, and wait until it is closed: TLS needs some turns of the event loop to shut down."""
        if self._transport is None:
            return
        self._transport.close()
        try:
            await asyncio.wait_for(self._lost.wait(), _GOODBYE_S)
        except TimeoutError:
            self._transport.abort()
            await self._lost.wait()

    async def _connect(self) -> None:
        # A late connection_lost of the old connection would be mistaken for that of the new one.
        await self.close()
        parts = self._target.parts
        secure = parts.scheme == "https"
        context = (self._target.tls or ssl.create_default_context()) if secure else None
        port = parts.port or (443 if secure else 80)
        await asyncio.get_running_loop().create_connection(lambda: self, parts.hostname or "", port, ssl=context)

    # Callbacks of asyncio ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        self._lost.clear()
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        """Collect the reply, and return it to the caller when it is complete."""
        self._buffer += data
        found = read_reply(self._buffer)
        if found is None:
            return
        status, body, closes = found
        self._buffer.clear()
        if closes and self._transport:
            self._transport.close()
        self._settle(Answer(OK, body) if status in ANSWERED else answer_of(HttpReply(status, "", {}, body)))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002, asyncio names it
        """End the wait of the caller with a lost connection."""
        self._transport = None
        self._lost.set()
        self._settle(Answer("connection lost"))

    def _give_up(self) -> None:
        self._settle(Answer("timeout"))
        if self._transport:
            # Bytes that still arrive would be mistaken for the next reply.
            self._transport.abort()

    def _settle(self, answer: Answer) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(answer)


def read_reply(data: bytes | bytearray) -> tuple[int, bytes, bool] | None:
    """Parse an HTTP reply: status, body, and whether the server closes the connection.

    None if it is not complete yet.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[:end])
    status, closes = int(head[9:12]), bool(_CLOSES.search(head))
    if _CHUNKED.search(head):
        body = _read_chunks(data, end + 4)
        return None if body is None else (status, body, closes)
    length = _LENGTH.search(head)
    size = int(length.group(1)) if length else 0
    return (status, bytes(data[end + 4 : end + 4 + size]), closes) if len(data) >= end + 4 + size else None


def _read_chunks(data: bytes | bytearray, start: int) -> bytes | None:
    parts: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(bytes(data[start:line_end]).split(b";")[0], 16)
        begin, stop = line_end + 2, line_end + 2 + size
        if len(data) < stop + 2:
            return None
        if size == 0:
            return b"".join(parts)
        parts.append(bytes(data[begin:stop]))
        start = stop + 2
