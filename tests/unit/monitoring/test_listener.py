"""The listener: what it answers, and what nobody can do to it."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from marsmith.config.server_config import ListenAddress
from marsmith.errors import ServerError
from marsmith.monitoring.exporter import listener as module
from marsmith.monitoring.exporter.listener import Listener, Reply, Request


async def answer(request: Request) -> Reply:
    return Reply(200 if request.path == "/there" else 404, f"{request.path} {request.accept}".encode(), "text/plain")


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(module, "DEADLINE_S", 0.5)
    threads = threading.active_count()
    listener = Listener(ListenAddress("listener", "http", "127.0.0.1", 0), answer)
    parts = urlsplit(listener.open())
    assert parts.hostname
    assert parts.port
    yield parts.hostname, parts.port
    listener.close()
    listener.close()
    assert threading.active_count() == threads


def ask(where: tuple[str, int], method: str = "GET", path: str = "/there", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*where, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def send(where: tuple[str, int], sent: bytes) -> bytes:
    with socket.create_connection(where, timeout=10) as raw:
        raw.sendall(sent)
        received = b""
        try:
            while more := raw.recv(65_536):
                received += more
        except ConnectionResetError:
            pass
        return received


def test_it_answers_get_and_head_and_hands_on_what_is_asked(where: tuple[str, int]) -> None:
    assert ask(where, path="/there?a=1", Accept="text/plain") == (200, b"/there text/plain")
    assert ask(where, path="/elsewhere")[0] == 404
    assert ask(where, "HEAD") == (200, b"")
    assert ask(where, "POST")[0] == 405


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /there HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /there HTTP/2.0\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"BREW /there HTTP/1.1\r\n\r\n", b"405"),
    ],
)
def test_what_is_no_request_gets_an_error(where: tuple[str, int], sent: bytes, status: bytes) -> None:
    assert send(where, sent).startswith(b"HTTP/1.1 " + status)
    assert ask(where)[0] == 200


def test_a_client_that_is_too_slow_is_cut_off(where: tuple[str, int]) -> None:
    assert send(where, b"GET /there HTTP/1.1\r\n") == b""


def test_more_connections_than_allowed_are_refused_and_the_first_ones_stay(
    where: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE_S", 60.0)
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(where)) for _ in range(module.MOST_CONNECTIONS)]
        for each in held:
            each.sendall(b"GET /there HTTP/1.1\r\n")
        assert ask(where)[0] == 503
        held[0].sendall(b"\r\n")
        assert held[0].recv(100).startswith(b"HTTP/1.1 200")


def test_a_port_in_use_is_named_with_what_is_missing_without_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listener = Listener(ListenAddress("listener", "http", "127.0.0.1", port), answer)
        with pytest.raises(ServerError, match=rf"no /metrics and no /ready: cannot listen at 127\.0\.0\.1:{port}"):
            listener.open()
        listener.close()
