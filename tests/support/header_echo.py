"""A light server that answers with the head of each request, in place of TorchServe behind the front."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class HeaderEcho:
    """What the server has seen, and what it answers.

    Attributes:
        port: its port on 127.0.0.1.
        status: status of every answer.
        seen: path of every request.
    dropped: how many of the next requests get no reply, but a closed connection.
    """

    port: int = 0
    status: int = 200
    seen: list[str] = field(default_factory=list)
    dropped: int = 0


@contextmanager
def header_echo() -> Iterator[HeaderEcho]:
    """Run such a server."""
    echo = HeaderEcho()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            echo.seen.append(self.path)
            if echo.dropped:
                echo.dropped -= 1
                self.close_connection = True
                return
            body = json.dumps(dict(self.headers.items())).encode()
            self.send_response(echo.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        echo.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield echo
        finally:
            server.shutdown()
            thread.join()
