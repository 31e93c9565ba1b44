"""What cannot be sent, and servers that cannot be reached: each cause is told by its own name, with both clients."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from marsmith import AsyncClient
from marsmith.cli import main
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.errors import ConnectionFailedError, MarsmithError, UsageError
from support.dripping_server import dripping

Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "on a loop"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Ask for a prediction with one of the two clients."""

    def blocking(url: str, **options: Any) -> Any:
        with Client(url, None, retries=NO_RETRIES) as client:
            return client.predict("m", b"x", **options)

    def on_a_loop(url: str, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, None, retries=NO_RETRIES) as client:
                return await client.predict("m", b"x", **options)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else on_a_loop


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"headers": {"X-Trace": "a\nb"}}, "the header X-Trace holds a line break"),
        ({"headers": {"X-Trace": "a\r\nX-Other: 1"}}, "the header X-Trace holds a line break"),
        ({"headers": {"X-Trace": "a\0b"}}, "the header X-Trace holds"),
        ({"headers": {"X-Trace": "→"}}, "the header X-Trace holds '→'"),
        ({"headers": {"X Trace": "a"}}, "'X Trace' is not the name of a header"),
        ({"headers": {"X-Trace\n": "a"}}, "is not the name of a header"),
        ({"headers": {"": "a"}}, "'' is not the name of a header"),
        ({"headers": {"X-Träce": "a"}}, "'X-Träce' is not the name of a header"),
        ({"content_type": "image/png\nX-Other: 1"}, "the header Content-Type holds a line break"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named(ask: Ask, options: dict[str, Any], problem: str) -> None:
    with dripping() as server:
        with pytest.raises(UsageError, match=problem) as caught:
            ask(server.url, **options)
        assert caught.value.tip
        assert server.connections == 0


def test_space_around_the_value_of_a_header_is_no_part_of_it(ask: Ask) -> None:
    with dripping() as server:
        assert ask(f"{server.url}/quick", headers={"X-Trace": " a\t"}).status == 200


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("127.0.0.1:8080", "neither http nor https|does not start with http://"),
        ("localhost", "does not start with http://"),
        ("ftp://127.0.0.1:1", "ftp is neither http nor https"),
        ("http://", "has no host"),
        ("http://127.0.0.1:99999", "[Pp]ort"),
        ("http://127.0.0.1:http", "[Pp]ort"),
        ("http://[::1", "IPv6"),
        ("http://127.0.0.1:1\n", "a space or a line break"),
        ("http://127.0.0.1 :1", "a space or a line break"),
    ],
)
def test_an_address_that_is_none_says_why(ask: Ask, url: str, reason: str) -> None:
    with pytest.raises(ConnectionFailedError, match=rf"(?s)is not the address of a server: .*({reason})"):
        ask(url)


def test_a_name_that_is_not_known_is_told_from_a_port_where_nothing_listens(ask: Ask) -> None:
    with pytest.raises(ConnectionFailedError, match=r"the host nowhere\.invalid is unknown"):
        ask("http://nowhere.invalid:8080")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionFailedError, match="nothing listens at"):
            ask(f"http://127.0.0.1:{unused.getsockname()[1]}")


def test_an_address_that_no_connection_can_have_is_told_as_the_system_says(ask: Ask) -> None:
    with pytest.raises(ConnectionFailedError, match=r"cannot connect to http://255\.255\.255\.255:9: "):
        ask("http://255.255.255.255:9")


@pytest.fixture
def babbling() -> Iterator[str]:
    """A server that answers, and not in HTTP, as one of gRPC or TLS does."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while not over.is_set():
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.settimeout(30)
                    connection.recv(1 << 16)
                    connection.sendall(b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        over.set()
        socket.create_connection(listening.getsockname()).close()
        thread.join()


def test_a_server_that_does_not_speak_http_is_told_from_a_connection_that_broke(ask: Ask, babbling: str) -> None:
    with pytest.raises(ConnectionFailedError, match="does not answer in HTTP") as caught:
        ask(babbling)
    assert "https://" in str(caught.value.tip)


def test_a_redirect_is_no_answer(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(MarsmithError, match="status 302"):
            ask(f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "m", "--url", "http://127.0.0.1:9/predictions/m", "--token", "a\nb"],
        ["bench", "m", "--url", "127.0.0.1:9/predictions/m"],
        ["bench", "m", "--url", "http://127.0.0.1:port/predictions/m"],
        ["bench", "m", "--url", "http://127.0.0.1:9/predic tions/m"],
    ],
)
def test_the_load_driver_refuses_the_same(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert main([*arguments, "--input", str(tmp_path / "a.txt")]) in {1, 2}
    error = capsys.readouterr().err
    assert "the header Authorization holds a line break" in error or "is not the address of a server" in error
