"""What the client for an event loop leaves behind when a server takes no more of a request."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from marsmith.client.async_http import AsyncTransport
from marsmith.client.http import HttpRequest
from marsmith.errors import DeadlineError

EARLY = b"HTTP/1.1 413 Request Entity Too Large\r\n%bContent-Length: 9\r\n\r\ntoo large"
BODY = bytes(20_000_000)


@contextmanager
def unread(answer: bytes) -> Iterator[str]:
    """A server that reads the beginning of a request, answers it, and keeps the connection without reading on."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                # Until then the client has filled all buffers on the way.
                over.wait(0.3)
                connection.sendall(answer)
                over.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            over.set()
            # The server would wait for ever for a client whose deadline passed before it could connect.
            socket.create_connection(listening.getsockname()).close()
            thread.join()


@pytest.mark.parametrize("answer", [EARLY % b"", EARLY % b"Connection: close\r\n", b""], ids=["kept", "closed", "none"])
def test_no_connection_stays_open_for_a_body_that_is_never_read(answer: bytes) -> None:
    async def use(url: str) -> None:
        transport = AsyncTransport()
        request = HttpRequest("POST", url, ("predictions", "echo"), body=BODY)
        if answer:
            reply = await transport.send(request, token=None, deadline_s=30)
            assert (reply.status, reply.body) == (413, b"too large")
        else:
            with pytest.raises(DeadlineError):
                await transport.send(request, token=None, deadline_s=0.6)
        await transport.close()

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with unread(answer) as url:
            asyncio.run(use(url))
            gc.collect()
    assert [str(warning.message) for warning in caught] == []
