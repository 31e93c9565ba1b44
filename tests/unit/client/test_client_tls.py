"""Both clients over TLS, REST and gRPC, against small servers of our own with certificates of every kind."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from marsmith import AsyncClient
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.client.grpc import GrpcTarget, Tls, grpc_target
from marsmith.client.grpc_messages import SERVICE, message_class
from marsmith.client.http import HttpReply
from marsmith.config.certificate import make_pair, write_pair
from marsmith.errors import ClientError, ConnectionFailedError, UsageError


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(b"answer")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class Quiet(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust the certificate is no error of this server."""


@contextmanager
def rest_server(key: Path | None, certificate: Path | None) -> Iterator[str]:
    server = Quiet(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_server(key: Path | None, certificate: Path | None) -> Iterator[str]:
    answer = message_class("PredictionResponse")(prediction=b"answer")
    method = grpc.unary_unary_rpc_method_handler(
        lambda request, context: answer,
        request_deserializer=message_class("PredictionsRequest").FromString,
        response_serializer=message_class("PredictionResponse").SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Predictions": method}),))
    if key and certificate:
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@dataclass(frozen=True)
class Served:
    rest: str
    grpc: str
    certificate: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Servers with a certificate of this machine, and without TLS."""
    root = tmp_path_factory.mktemp("tls")
    with ExitStack() as stack:
        servers = {}
        for name in ("good", "plain"):
            key, certificate = write_pair(root / name, make_pair()) if name == "good" else (None, None)
            rest = stack.enter_context(rest_server(key, certificate))
            servers[name] = Served(rest, stack.enter_context(grpc_server(key, certificate)), certificate or root)
        yield servers


def blocking(server: Served, ca_file: Path | None, way: str) -> HttpReply:
    with Client(server.rest, None, grpc=server.grpc, ca_file=ca_file, retries=NO_RETRIES, deadline_s=60) as client:
        reply: HttpReply = getattr(client, way)("m", b"question")
        return reply


def on_a_loop(server: Served, ca_file: Path | None, way: str) -> HttpReply:
    async def run() -> HttpReply:
        async with AsyncClient(
            server.rest, None, grpc=server.grpc, ca_file=ca_file, retries=NO_RETRIES, deadline_s=60
        ) as client:
            reply: HttpReply = await getattr(client, way)("m", b"question")
            return reply

    return asyncio.run(run())


Call = Callable[[Served, "Path | None", str], HttpReply]
each_client = pytest.mark.parametrize("call", [blocking, on_a_loop])
each_way = pytest.mark.parametrize("way", ["predict", "predict_grpc"])


@each_client
@each_way
def test_a_certificate_that_is_trusted_lets_the_call_through(served: dict[str, Served], call: Call, way: str) -> None:
    assert call(served["good"], served["good"].certificate, way).body == b"answer"


@each_client
@each_way
def test_a_certificate_that_is_not_trusted_is_named_with_what_to_do(
    served: dict[str, Served], call: Call, way: str
) -> None:
    with pytest.raises(ConnectionFailedError, match=r"the certificate of .* cannot be trusted") as caught:
        call(served["good"], None, way)
    assert "ca_file" in str(caught.value.tip)
    assert not caught.value.sent
    assert not caught.value.refused


@each_client
def test_a_server_without_tls_is_named_as_such(served: dict[str, Served], call: Call) -> None:
    with pytest.raises(ConnectionFailedError, match="does not speak TLS"):
        call(served["plain"], None, "predict")
    with pytest.raises(ClientError):
        call(served["plain"], None, "predict_grpc")


def test_a_file_without_a_certificate_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_bytes(b"")
    for make in (Client, AsyncClient):
        with pytest.raises(UsageError, match="holds no certificate"):
            make(ca_file=tmp_path / "empty.pem")
        with pytest.raises(UsageError, match="cannot read"):
            make(ca_file=tmp_path / "missing.pem")


@pytest.mark.parametrize(
    ("grpc", "inference", "expected"),
    [
        ("h:7070", "http://h:8080", GrpcTarget("h:7070", None)),
        ("h:7070", "https://h:8080", GrpcTarget("h:7070", Tls())),
        ("grpcs://h:7070", "http://h:8080", GrpcTarget("h:7070", Tls())),
        ("grpc://h:7070", "https://h:8080", GrpcTarget("h:7070", None)),
        (None, "https://h:8080", None),
    ],
)
def test_grpc_speaks_tls_where_rest_does_unless_told_otherwise(
    grpc: str | None, inference: str, expected: GrpcTarget | None
) -> None:
    assert grpc_target(grpc, inference, None) == expected


def test_another_scheme_is_no_address_of_a_grpc_api() -> None:
    with pytest.raises(UsageError, match="gRPC API"):
        grpc_target("https://h:7070", "https://h:8080", None)
