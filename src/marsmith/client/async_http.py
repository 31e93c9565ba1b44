"""The requests of ``rest`` without blocking: the same replies and errors, on an event loop."""

from __future__ import annotations

import asyncio
import io
import math
import ssl
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith.client.deadline import CONNECTING, READING, SENDING, WAITING, Deadline
from marsmith.client.http import (
    HttpReply,
    HttpRequest,
    broken,
    check_address,
    headers_of,
    joined,
    missed,
    no_address,
    not_connected,
    not_http,
    not_trusted,
    readable_ca,
)
from marsmith.errors import ClientError, MissingDependencyError

if TYPE_CHECKING:
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

LARGE_BYTES = 1 << 19


class AsyncTransport:
    """Sends requests over connections that are kept open, on one event loop."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Create a transport; the connections are opened by the first request.

        Args:
            ca_file: certificates that a server's own is checked against, in PEM; None: those that certifi knows.

        Raises:
            MissingDependencyError: aiohttp is not installed.
        """
        try:
            import aiohttp  # noqa: F401
        except ImportError:
            raise MissingDependencyError("aiohttp", extra="aio") from None
        self._ca_file = readable_ca(ca_file) if ca_file else None
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    async def send(self, request: HttpRequest, token: str | None, deadline_s: float) -> HttpReply:
        """Send ``request`` and return the reply, whatever its status; errors as ``rest.Transport.send``."""
        async with aclosing(self.stream(request, token, deadline_s)) as parts:
            return joined([part async for part in parts])

    async def stream(
        self, request: HttpRequest, token: str | None, deadline_s: float
    ) -> AsyncGenerator[HttpReply, None]:
        """Send ``request`` and yield a reply for each part of the answer, as it comes; at least one."""
        import aiohttp
        from yarl import URL

        headers, deadline, progress = (
            headers_of(request, token),
            Deadline(deadline_s),
            _Progress(len(request.body or b"")),
        )
        check_address(request.url)
        try:
            address = URL(request.address, encoded=True)
            async with self._opened().request(
                request.method,
                address,
                data=_data(request.body),
                headers=headers,
                # Without the threshold a timeout of more than 5 s would end with the next whole second.
                timeout=aiohttp.ClientTimeout(total=deadline_s, ceil_threshold=math.inf),
                allow_redirects=False,
                # requests gives a body no type that nobody named; handlers see the same either way.
                skip_auto_headers=("Content-Type",),
                trace_request_ctx=progress,
            ) as response:
                progress.doing = READING
                async for part in _parts(response, deadline):
                    yield part
        except TimeoutError:
            raise missed(request.url, deadline_s, progress.doing) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise _failure(request.url, error) from None

    def _opened(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else _certifi())
            # The limit of 100 would make requests wait where nobody sees it.
            connector = aiohttp.TCPConnector(limit=0, ssl=context)
            connector._factory = _ended_at_once()
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=True, trust_env=False, trace_configs=[_traces()]
            )
            # aiohttp would send a GET, PUT or DELETE again itself; when that is safe is decided in `retries`.
            self._session._retry_connection = False
        return self._session


@dataclass
class _Progress:
    """How far a request has come.

    Attributes:
        body_bytes: still to be sent.
        doing: what it is doing, in words.
    """

    body_bytes: int
    doing: str = CONNECTING

    def connected(self) -> None:
        self.doing = SENDING

    def sent(self, size: int = 0) -> None:
        self.body_bytes -= size
        if self.body_bytes <= 0:
            self.doing = WAITING


def _traces() -> aiohttp.TraceConfig:
    """Return what tells aiohttp's progress to the request's own."""
    import aiohttp

    async def connected(_: Any, context: Any, __: Any) -> None:
        context.trace_request_ctx.connected()

    async def head_sent(_: Any, context: Any, __: Any) -> None:
        context.trace_request_ctx.sent()

    async def part_sent(_: Any, context: Any, told: aiohttp.TraceRequestChunkSentParams) -> None:
        context.trace_request_ctx.sent(len(told.chunk))

    traces = aiohttp.TraceConfig()
    traces.on_connection_create_end.append(connected)
    traces.on_connection_reuseconn.append(connected)
    traces.on_request_headers_sent.append(head_sent)
    traces.on_request_chunk_sent.append(part_sent)
    return traces


def _ended_at_once() -> partial[ResponseHandler]:
    """Return what makes aiohttp's end of each new connection, one that waits for nobody when it is closed."""
    from aiohttp.client_proto import ResponseHandler

    class EndedAtOnce(ResponseHandler):
        def close(self) -> None:
            transport = self.transport
            super().close()
            # A server that answered early, or not at all, may never read the rest of the body: until it
            # does, asyncio would keep the connection open, even when the event loop ends.
            if transport is not None:
                transport.abort()

    end: type[ResponseHandler] = EndedAtOnce
    return partial(end, asyncio.get_running_loop())


async def _parts(response: aiohttp.ClientResponse, deadline: Deadline) -> AsyncGenerator[HttpReply, None]:
    headers = {name.lower(): value for name, value in response.headers.items()}
    kind = headers.get("content-type", "")
    if headers.get("transfer-encoding") != "chunked":
        yield HttpReply(response.status, kind, headers, await response.read())
        return
    part, empty = b"", True
    async for data, ends in response.content.iter_chunks():
        if deadline.left_s <= 0:
            raise TimeoutError
        part += data
        if ends and part:
            empty = False
            yield HttpReply(response.status, kind, headers, part)
            part = b""
    if part or empty:
        yield HttpReply(response.status, kind, headers, part)


def _failure(url: str, error: Exception) -> ClientError:
    """Tell what kept a request from its reply."""
    import aiohttp

    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return not_trusted(url, str(error))
    if isinstance(error, aiohttp.ClientConnectorError):
        return not_connected(url, error.os_error)
    if isinstance(error, aiohttp.ClientResponseError):
        return not_http(url)
    # InvalidURL is a ValueError too.
    return no_address(url, str(error)) if isinstance(error, ValueError | aiohttp.InvalidURL) else broken(url)


def _data(body: bytes | None) -> bytes | io.BytesIO | None:
    """Return what aiohttp is to send: a large body in pieces, so that others have their turn in between."""
    return body if body is None or len(body) < LARGE_BYTES else io.BytesIO(body)


def _certifi() -> str:
    import certifi

    return certifi.where()
