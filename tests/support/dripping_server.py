"""A server that answers a byte at a time, or not at all: what it does is said by the path that it is asked for."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

# Much longer than the deadlines of the tests, and not for ever: a client without one deadline gets its answer.
BYTES = 300
PAUSE_S = 0.02
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
ANSWER = HEAD + b"Content-Length: 2\r\n\r\nok"


@dataclass
class Dripping:
    """One such server.

    Attributes:
        url: its address.
        connections: how many have been opened.
        finished: of how many answers the last part was sent.
    """

    url: str
    connections: int = 0
    finished: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection until the client ends it."""
        self.connections += 1
        with connection, suppress(OSError):
            while request := _request(connection):
                answer = _answer(request)
                for number, part in enumerate(answer, 1):
                    # Counted before: whoever has the whole answer finds it counted.
                    self.finished += number == len(answer)
                    connection.sendall(part)
                    if len(answer) > 1 and self.over.wait(PAUSE_S):
                        return
                if not answer:
                    self.over.wait()


def _answer(request: bytes) -> list[bytes]:
    """Return the parts of the answer; none at all for a server that says nothing."""
    path = request.split(b" ")[1]
    drops = [b"x"] * BYTES
    if b"silent" in path:
        return []
    if b"head" in path:
        return [HEAD, b"X-Slow: ", *drops, b"\r\nContent-Length: 2\r\n\r\nok"]
    if b"lines" in path:
        return [HEAD, *(b"X-%d: x\r\n" % number for number in range(90)), b"Content-Length: 2\r\n\r\nok"]
    if b"body" in path or b"/token" in path:
        return [HEAD + b"Content-Length: %d\r\n\r\n" % BYTES, *drops]
    if b"chunks" in path:
        return [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *(b"1\r\nx\r\n" for _ in drops), b"0\r\n\r\n"]
    if b"chunk" in path:
        return [HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % BYTES, *drops, b"\r\n0\r\n\r\n"]
    return [ANSWER]


def _request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l")), 0
    )
    while len(body) < length:
        part = connection.recv(1 << 16)
        if not part:
            return b""
        body += part
    return head


@contextmanager
def dripping(context: ssl.SSLContext | None = None) -> Iterator[Dripping]:
    """Serve on a free port, over TLS with ``context``."""
    with _listening(
        lambda connection: context.wrap_socket(connection, server_side=True) if context else connection
    ) as it:
        if context:
            it.url = it.url.replace("http:", "https:")
        yield it


@contextmanager
def _listening(wrapped: Callable[[socket.socket], socket.socket]) -> Iterator[Dripping]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Dripping(f"http://127.0.0.1:{listening.getsockname()[1]}")
        threads: list[threading.Thread] = []
        open_ones: list[socket.socket] = []

        def one(connection: socket.socket) -> None:
            with suppress(OSError):
                server.serve(wrapped(connection))

        def accept() -> None:
            while not server.over.is_set():
                connection, _ = listening.accept()
                open_ones.append(connection)
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server
        finally:
            server.over.set()
            socket.create_connection(listening.getsockname()).close()
            accepting.join()
            for connection in open_ones:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for connection in open_ones:
                connection.close()
