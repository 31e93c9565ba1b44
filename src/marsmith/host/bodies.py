"""Bodies of requests, read within the limits of the host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class TooLargeError(Exception):
    """The body is larger than the limit; the rest of it was not read."""


class GoneError(Exception):
    """The client has gone before its request was complete."""


async def read_body(receive: Receive, declared: bytes | None, most: int) -> bytes:
    """Return the whole body.

    Args:
        receive: from the ASGI server.
        declared: Content-Length; None if there is none.
        most: limit, in bytes.

    Raises:
        TooLargeError: it is larger, or says so.
        GoneError: the client has gone.
    """
    if declared is not None and int(declared) > most:
        raise TooLargeError
    message = await receive()
    first: bytes = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body") and len(first) <= most:
        return first
    parts, size = [first], len(first)
    while message["type"] == "http.request" and message.get("more_body") and size <= most:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
    if message["type"] != "http.request":
        raise GoneError
    if size > most:
        raise TooLargeError
    return b"".join(parts)
