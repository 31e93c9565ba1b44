"""A small HTTP listener for probes and Prometheus, bounded in every way: nobody who asks it can slow the server down.

It answers GET and HEAD of a few paths, one request a connection. The number of connections, the size of a request and
the time of both together are limited.
"""

from __future__ import annotations

import asyncio
import http
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from marsmith.config.server_config import ListenAddress
from marsmith.errors import ServerError

# More than any number of probes; a request is a few hundred bytes.
MOST_CONNECTIONS = 64
MOST_REQUEST_BYTES = 8192
# Of a whole request with its reply, in seconds.
DEADLINE_S = 5.0
_END_S = 2.0


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        path: its path, without the query.
        accept: its header ``Accept``; empty if it has none.
    """

    path: str
    accept: str = ""


@dataclass(frozen=True)
class Reply:
    """A reply."""

    status: int
    body: bytes
    content_type: str = "application/json"


Answer = Callable[[Request], Awaitable[Reply]]


class Listener:
    """Listens in a thread of its own."""

    def __init__(self, address: ListenAddress, answer: Answer) -> None:
        """Prepare, without listening yet.

        Args:
            address: where to listen; port 0: a free one.
            answer: returns the reply to a request. Runs in the listener's event loop, and must not block it.
        """
        self._address, self._answer = address, answer
        self._open = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> str:
        """Begin to listen, and return the base URL.

        Raises:
            ServerError: the address cannot be bound.
        """
        listening = _bound(self._address)
        started = threading.Event()
        self._thread = threading.Thread(
            target=_run, args=(self._serve(listening, started),), name="listener", daemon=True
        )
        self._thread.start()
        started.wait()
        port = listening.getsockname()[1]
        return ListenAddress("listener", "http", self._address.host, port).url

    def close(self) -> None:
        """Stop listening; requests under way are cut."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_END_S)

    async def _serve(self, listening: socket.socket, started: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=listening, limit=MOST_REQUEST_BYTES)
        started.set()
        async with server:
            await self._stop.wait()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            async with asyncio.timeout(DEADLINE_S):
                await _send(writer, *await self._reply(reader))
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            # Whoever asked is too slow, or has gone.
            writer.transport.abort()
        finally:
            self._open -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader) -> tuple[str, Reply]:
        """Read a request, and return its method and the reply."""
        if self._open > MOST_CONNECTIONS:
            return "GET", _error(503, f"more than {MOST_CONNECTIONS} connections")
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return "GET", _error(431, f"a request has at most {MOST_REQUEST_BYTES} bytes here")
        line, *fields = head.decode("latin-1").split("\r\n")
        parts = line.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return "GET", _error(400, "not an HTTP/1 request")
        method, target, _ = parts
        if method not in {"GET", "HEAD"}:
            return method, _error(405, f"{method[:20]} is not GET or HEAD")
        accept = next((each.partition(":")[2].strip() for each in fields if each.lower().startswith("accept:")), "")
        return method, await self._answer(Request(target.partition("?")[0], accept))


def _error(status: int, reason: str) -> Reply:
    return json_reply(status, {"reason": reason})


def json_reply(status: int, content: dict[str, Any]) -> Reply:
    """Return a reply of one line of JSON."""
    return Reply(status, json.dumps(content).encode() + b"\n")


async def _send(writer: asyncio.StreamWriter, method: str, reply: Reply) -> None:
    status = http.HTTPStatus(reply.status)
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {reply.content_type}",
        f"Content-Length: {len(reply.body)}",
        "Connection: close",
        *(["Allow: GET, HEAD"] if reply.status == http.HTTPStatus.METHOD_NOT_ALLOWED else []),
    ]
    writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + (b"" if method == "HEAD" else reply.body))
    await writer.drain()
    # Only what was read in full can be closed without a reset, which would take the reply away from the client.
    writer.write_eof()


def _run(serving: Coroutine[Any, Any, None]) -> None:
    asyncio.run(serving)


def _bound(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
    except OSError as error:
        listening.close()
        raise ServerError(
            f"no /metrics and no /ready: cannot listen at {address.host}:{address.port}: {error.strerror or error}",
            tip="change listener in config/marsmith.yaml, or stop what uses the port",
        ) from None
    return listening
