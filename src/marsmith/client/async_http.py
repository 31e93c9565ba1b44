"""Asynchronous HTTP transport: the same replies and errors as ``http``, on an event loop."""

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
    """Sends requests over persistent connections, on one event loop."""

    def __init__(self, ca_file: Path | None = None) -> None:
        """Create a transport; the connections are opened by the first request.

        Args:
            ca_file: trusted certificates in PEM; None: those of certifi.

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
        """Send ``request`` and return the reply with any status; errors as ``rest.Transport.send``."""
        async with aclosing(self.stream(request, token, deadline_s)) as parts:
            return joined([part async for part in parts])

    async def stream(
        self, request: HttpRequest, token: str | None, deadline_s: float
    ) -> AsyncGenerator[HttpReply, None]:
        """Send ``request`` and yield a reply for each part of the answer as it arrives; at least one."""
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
                # Without the threshold aiohttp rounds a timeout of more than 5 s up to a whole second.
                timeout=aiohttp.ClientTimeout(total=deadline_s, ceil_threshold=math.inf),
                allow_redirects=False,
                # Like requests, send no content type unless the caller names one; handlers see the same in both
                # clients.
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
            # The default limit of 100 connections would delay requests without notice.
            connector = aiohttp.TCPConnector(limit=0, ssl=context)
            connector._factory = _ended_at_once()
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=True, trust_env=False, trace_configs=[_traces()]
            )
            # aiohttp would retry a GET, PUT or DELETE itself; `retries` decides when that is safe.
            self._session._retry_connection = False
        return self._session


@dataclass
class _Progress:
    """Progress of a request.

    Attributes:
        body_bytes: bytes that are not sent yet.
        doing: description of the current step.
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
    """Return the trace configuration that updates a request's progress."""
    import aiohttp

    async def connected(_: Any, context: Any, __: Any) -> None:
        context.trace_request_ctx.connected()

    async def head_sent(_: Any, context: Any, __: Any) -> None:
        context.trace_request_ctx.sent()

    async def part_sent(_: Any, context: Any, parameters: aiohttp.TraceRequestChunkSentParams) -> None:
        context.trace_request_ctx.sent(len(parameters.chunk))

    traces = aiohttp.TraceConfig()
    traces.on_connection_create_end.append(connected)
    traces.on_connection_reuseconn.append(connected)
    traces.on_request_headers_sent.append(head_sent)
    traces.on_request_chunk_sent.append(part_sent)
    return traces


def _ended_at_once() -> partial[ResponseHandler]:
    """Return a connection class that does not wait for its peer when it is closed."""
    from aiohttp.client_proto import ResponseHandler

    class EndedAtOnce(ResponseHandler):
        def close(self) -> None:
            transport = self.transport
            super().close()
            # A server that answered early, or not at all, may never read the rest of the body. asyncio would then keep
            # the connection open, even after the end of the event loop.
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
    """Map an exception of aiohttp to the client's error."""
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
    """Return the body for aiohttp: a large body in pieces, so that other tasks run in between."""
    return body if body is None or len(body) < LARGE_BYTES else io.BytesIO(body)


def _certifi() -> str:
    import certifi

    return certifi.where()
