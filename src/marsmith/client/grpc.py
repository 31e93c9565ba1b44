"""gRPC channel to TorchServe's inference API, and its address."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.client.failures import INVALID_TOKEN, NOT_FOUND, NOT_TAKEN, reply_of
from marsmith.client.grpc_messages import EMPTY, METHODS, SERVICE, Method, message_class, predictions_request
from marsmith.client.hosts import host_of, is_this_machine
from marsmith.client.http import ONCE, HttpReply, broken, missed, not_trusted, readable_ca, unreachable
from marsmith.errors import MissingDependencyError, UsageError

# TorchServe's own table from HTTP status to gRPC code, inverted.
_HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "OUT_OF_RANGE": 416,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}
_TOKEN_REFUSED = "Token Authorization failed"  # noqa: S105, a sentence of the server
_JAVA_PACKAGE = "org.pytorch.serve."
_UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True)
class Tls:
    """TLS settings: ``ca_file`` holds the trusted certificates in PEM; None: those of gRPC."""

    ca_file: Path | None = None


class InferenceChannel:
    """A gRPC connection to the inference API; may be used by several threads."""

    def __init__(self, address: str, *, tls: Tls | None = None) -> None:
        """Create a channel; it connects at the first call.

        Args:
            address: a ``host:port``.
            tls: TLS settings; None: no TLS.

        Raises:
            MissingDependencyError: grpcio or protobuf is not installed.
        """
        grpc = imported_grpc()
        self.address = address
        self._channel = open_channel(grpc, address, tls)
        self._calls = multicallables(self._channel)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def ping(self, token: str | None, deadline_s: float) -> HttpReply:
        """Request the health that the server reports. The body of the reply is JSON, as over REST."""
        import grpc

        try:
            health = self._calls["Ping"](message_class(EMPTY)(), timeout=deadline_s, metadata=metadata(token))
        except grpc.RpcError as error:
            return failed_reply(self.address, error, deadline_s)
        return HttpReply(200, "application/json", {}, health.health.encode())

    def predict(
        self,
        model: str,
        version: str | None,
        body: bytes,
        token: str | None,
        deadline_s: float,
        *,
        idempotent: bool = True,
    ) -> HttpReply:
        """Send one request. The reply is the same as over REST, except for a status that a handler sets.

        Raises:
            ConnectionFailedError: the server does not accept connections.
            DeadlineError: the answer did not arrive in time.
        """
        import grpc

        try:
            answer = self._calls["Predictions"](
                predictions_request(model, version, body),
                timeout=deadline_s,
                metadata=metadata(token, idempotent=idempotent),
            )
        except grpc.RpcError as error:
            return failed_reply(self.address, error, deadline_s)
        return HttpReply(200, "", {}, answer.prediction)

    def stream(
        self,
        model: str,
        version: str | None,
        body: bytes,
        token: str | None,
        deadline_s: float,
        *,
        idempotent: bool = True,
    ) -> Generator[HttpReply, None, None]:
        """Send one request and yield a reply for each part of the answer; a failure is the last reply."""
        import grpc

        request = predictions_request(model, version, body)
        sent = metadata(token, idempotent=idempotent)
        call = self._calls["StreamPredictions"](request, timeout=deadline_s, metadata=sent)
        try:
            for answer in call:
                yield HttpReply(200, "", {}, answer.prediction)
        except grpc.RpcError as error:
            yield failed_reply(self.address, error, deadline_s)
        finally:
            # If the caller stops reading, the request ends; else the server would continue.
            call.cancel()


def imported_grpc() -> Any:
    """Return the module ``grpc``; raises MissingDependencyError if it is not installed."""
    try:
        import grpc
    except ImportError:
        raise MissingDependencyError("grpcio", extra="grpc") from None
    return grpc


def open_channel(module: Any, address: str, tls: Tls | None, further: Sequence[tuple[str, int]] = ()) -> Any:
    """Open a channel with ``grpc`` or ``grpc.aio``, and with ``further`` options.

    gRPC would use the proxy of the environment, which is wrong for a server on this machine.
    """
    direct = (("grpc.enable_http_proxy", 0),) if is_this_machine(host_of(address)) else ()
    options = (*_UNLIMITED, *direct, *further)
    if tls is None:
        return module.insecure_channel(address, options=options)
    trusted = readable_ca(tls.ca_file).read_bytes() if tls.ca_file else None
    return module.secure_channel(address, imported_grpc().ssl_channel_credentials(trusted), options=options)


def multicallables(channel: Any) -> dict[str, Any]:
    """Return the calls of the API on a channel, by name."""
    return {name: _multicallable(channel, name, method) for name, method in METHODS.items()}


def failed_reply(address: str, error: Any, deadline_s: float) -> HttpReply:
    """Return the REST reply for a failed call.

    Raises:
        ConnectionFailedError: the server does not accept connections, its certificate is not trusted, or the connection
            broke.
        DeadlineError: the answer did not arrive in time.
    """
    code, details = error.code().name, str(error.details() or "")
    if _JAVA_PACKAGE in details:
        return rest_reply(code, details)
    if code == "DEADLINE_EXCEEDED":
        raise missed(address, deadline_s, "waiting for the reply over gRPC") from None
    if code == "UNAVAILABLE":
        text = details + str(getattr(error, "debug_error_string", str)())
        # A server without TLS fails in the handshake too.
        if any(
            sign in text
            for sign in ("CERTIFICATE_VERIFY_FAILED", "andshake failed", "WRONG_VERSION_NUMBER", "Peer name")
        ):
            raise not_trusted(address, text) from None
        raise (unreachable(address) if "failed to connect" in details else broken(address)) from None
    return rest_reply(code, details)


def rest_reply(code: str, details: str) -> HttpReply:
    """Return the REST reply for the code and the details of a gRPC status.

    The details are a message, and the Java exception on a line of its own.
    """
    lines = details.rsplit("\n", 1)
    named = len(lines) == 2 and lines[1].removesuffix(".()").endswith("Exception")
    kind = lines[1].removesuffix(".()").rpartition(".")[2] if named else code
    message = lines[0] if named else details
    if _TOKEN_REFUSED in details:
        return reply_of(400, INVALID_TOKEN, message)
    if kind in NOT_FOUND:
        return reply_of(404, kind, message)
    if NOT_TAKEN in details:
        return reply_of(503, "ServiceUnavailableException", message)
    return reply_of(_HTTP_STATUS.get(code, 500), kind, message)


def _multicallable(channel: Any, name: str, method: Method) -> Any:
    sides = ("stream" if method.streams_requests else "unary", "stream" if method.streams_responses else "unary")
    make = getattr(channel, "_".join(sides))
    return make(
        f"/{SERVICE}/{name}",
        request_serializer=message_class(method.request).SerializeToString,
        response_deserializer=message_class(method.response).FromString,
    )


def metadata(token: str | None, *, idempotent: bool = True) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call."""
    return ((("authorization", f"Bearer {token}"),) if token else ()) + (() if idempotent else (ONCE,))


@dataclass(frozen=True)
class GrpcTarget:
    """Address of a gRPC server, ``host:port``, and its TLS settings; None: no TLS."""

    address: str
    tls: Tls | None


def grpc_target(grpc: str | None, inference: str, ca_file: Path | None) -> GrpcTarget | None:
    """Parse the address of a gRPC API. Without a scheme it uses TLS if the inference API over REST does.

    Raises:
        UsageError: the scheme is not ``grpc`` or ``grpcs``.
    """
    if grpc is None:
        return None
    scheme, _, address = grpc.rpartition("://")
    if scheme not in {"", "grpc", "grpcs"}:
        raise UsageError(f"{grpc!r} is not the address of a gRPC API", tip="write it as host:7070")
    secure = inference.startswith("https://") if not scheme else scheme == "grpcs"
    return GrpcTarget(address, Tls(ca_file) if secure else None)
