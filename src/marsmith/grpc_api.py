"""TorchServe's inference API over gRPC, with messages built from the definition below.

TorchServe ships no Python stubs. The definition states what its ``inference.proto`` does; a test compares the two,
field by field, with the file inside the installed server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from marsmith.errors import ConnectionFailedError, DeadlineError, MissingDependencyError
from marsmith.failures import INVALID_TOKEN, NOT_FOUND, NOT_TAKEN, reply_of
from marsmith.rest import Reply

if TYPE_CHECKING:
    import grpc

PACKAGE = "org.pytorch.serve.grpc.inference"
SERVICE = f"{PACKAGE}.InferenceAPIsService"
EMPTY = "google.protobuf.Empty"
STATUS = "google.rpc.Status"
# The key under which a handler finds the body of a REST request; with it, it need not know how a request came.
INPUT_KEY = "body"


@dataclass(frozen=True)
class Field:
    """One field of a message: ``type`` is a scalar of proto3, the full name of a message, or ``map<string, bytes>``."""

    name: str
    number: int
    type: str
    label: str = ""


@dataclass(frozen=True)
class Method:
    """One call: the names of its messages, and whether each side sends a stream of them."""

    request: str
    response: str
    streams_requests: bool = False
    streams_responses: bool = False


MESSAGES: dict[str, tuple[Field, ...]] = {
    "PredictionsRequest": (
        Field("model_name", 1, "string"),
        Field("model_version", 2, "string"),
        Field("input", 3, "map<string, bytes>"),
        Field("sequence_id", 4, "string", "optional"),
    ),
    "PredictionResponse": (
        Field("prediction", 1, "bytes"),
        Field("sequence_id", 2, "string", "optional"),
        Field("status", 3, STATUS, "optional"),
    ),
    "TorchServeHealthResponse": (Field("health", 1, "string"),),
}
METHODS = {
    "Ping": Method(EMPTY, "TorchServeHealthResponse"),
    "Predictions": Method("PredictionsRequest", "PredictionResponse"),
    "StreamPredictions": Method("PredictionsRequest", "PredictionResponse", streams_responses=True),
    "StreamPredictions2": Method("PredictionsRequest", "PredictionResponse", True, True),
}
RPC_STATUS = (
    Field("code", 1, "int32"),
    Field("message", 2, "string"),
    Field("details", 3, "google.protobuf.Any", "repeated"),
)

# TorchServe's own table, from HTTP status to gRPC code, read backwards.
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


class InferenceChannel:
    """A connection to the inference API over gRPC; may be used by several threads."""

    def __init__(self, address: str) -> None:
        """Create a channel to ``address``, a ``host:port``; it connects at the first call.

        Raises:
            MissingDependencyError: grpcio or protobuf is not installed.
        """
        try:
            import grpc
        except ImportError:
            raise MissingDependencyError("grpcio", extra="grpc") from None
        self.address = address
        self._channel = grpc.insecure_channel(address, options=_UNLIMITED)
        self._calls = {name: _multicallable(self._channel, name, method) for name, method in METHODS.items()}

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def ping(self, token: str | None, deadline_s: float) -> Reply:
        """Ask for the health that the server claims; the body of the reply is JSON, as over REST."""
        import grpc

        try:
            health = self._calls["Ping"](message_class(EMPTY)(), timeout=deadline_s, metadata=_metadata(token))
        except grpc.RpcError as error:
            return self._failed(error, deadline_s)
        return Reply(200, "application/json", {}, health.health.encode())

    def predict(self, model: str, version: str | None, body: bytes, token: str | None, deadline_s: float) -> Reply:
        """Send one request; the reply is what REST would have given, but for the status that a handler sets.

        Raises:
            ConnectionFailedError: nothing listens there.
            DeadlineError: no answer in time.
        """
        import grpc

        try:
            answer = self._calls["Predictions"](
                _request(model, version, body), timeout=deadline_s, metadata=_metadata(token)
            )
        except grpc.RpcError as error:
            return self._failed(error, deadline_s)
        return Reply(200, "", {}, answer.prediction)

    def stream(
        self, model: str, version: str | None, body: bytes, token: str | None, deadline_s: float
    ) -> Iterator[Reply]:
        """Send one request and yield a reply for each part of the answer; a failure is the last of them."""
        import grpc

        request = _request(model, version, body)
        call = self._calls["StreamPredictions"](request, timeout=deadline_s, metadata=_metadata(token))
        try:
            for answer in call:
                yield Reply(200, "", {}, answer.prediction)
        except grpc.RpcError as error:
            yield self._failed(error, deadline_s)
        finally:
            # Whoever stops reading wants no more: without this the server goes on.
            call.cancel()

    def _failed(self, error: Any, deadline_s: float) -> Reply:
        code, details = error.code().name, str(error.details() or "")
        if code == "DEADLINE_EXCEEDED" and _JAVA_PACKAGE not in details:
            raise DeadlineError(f"no answer from {self.address} within {deadline_s:g} s") from None
        if code == "UNAVAILABLE" and _JAVA_PACKAGE not in details:
            reason = "nothing listens at" if "failed to connect" in details else "the connection broke to"
            raise ConnectionFailedError(f"{reason} {self.address}", tip="marsmith serve") from None
        return rest_reply(code, details)


def rest_reply(code: str, details: str) -> Reply:
    """Give the reply that REST would have given, for the name and the details of a gRPC status.

    The details are a message and, on a line of its own, the Java exception.
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


@cache
def message_class(name: str) -> Any:
    """Return the class of a message: one of ``MESSAGES``, or a full name that one of them uses."""
    from google.protobuf import message_factory

    full_name = f"{PACKAGE}.{name}" if name in MESSAGES else name
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@cache
def _pool() -> Any:
    """Build a pool of its own: in the shared one, other stubs of TorchServe could stand in the way."""
    try:
        from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, empty_pb2
    except ImportError:
        raise MissingDependencyError("protobuf", extra="grpc") from None
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, empty_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    status = descriptor_pb2.FileDescriptorProto(
        name="google/rpc/status.proto", package="google.rpc", syntax="proto3", dependency=["google/protobuf/any.proto"]
    )
    _add_message(status, "Status", RPC_STATUS)
    inference = descriptor_pb2.FileDescriptorProto(
        name="inference.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=["google/protobuf/empty.proto", "google/rpc/status.proto"],
    )
    for name, fields in MESSAGES.items():
        _add_message(inference, name, fields)
    for file in (status, inference):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add_message(file: Any, name: str, fields: Sequence[Field]) -> None:
    message = file.message_type.add(name=name)
    for field in fields:
        added = message.field.add(name=field.name, number=field.number, label=_label(field.label))
        if field.type.startswith("map<"):
            _make_map(message, added, f".{file.package}.{name}", field)
        elif "." in field.type:
            added.type, added.type_name = added.TYPE_MESSAGE, f".{field.type}"
        else:
            added.type = _scalar(field.type)
        if field.label == "optional":
            # proto3 keeps whether such a field was set in a oneof of its own.
            added.proto3_optional, added.oneof_index = True, len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")


def _make_map(message: Any, added: Any, owner: str, field: Field) -> None:
    """Make ``added`` a map: on the wire, a repeated message of a key and a value."""
    key, value = field.type.removeprefix("map<").removesuffix(">").split(", ")
    entry = message.nested_type.add(name=f"{field.name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_label(""), type=_scalar(key))
    entry.field.add(name="value", number=2, label=_label(""), type=_scalar(value))
    added.label, added.type, added.type_name = _label("repeated"), added.TYPE_MESSAGE, f"{owner}.{entry.name}"


def _label(label: str) -> Any:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    return FieldDescriptorProto.LABEL_REPEATED if label == "repeated" else FieldDescriptorProto.LABEL_OPTIONAL


def _scalar(name: str) -> Any:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    return FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}")


def _multicallable(channel: grpc.Channel, name: str, method: Method) -> Any:
    sides = ("stream" if method.streams_requests else "unary", "stream" if method.streams_responses else "unary")
    make = getattr(channel, "_".join(sides))
    return make(
        f"/{SERVICE}/{name}",
        request_serializer=message_class(method.request).SerializeToString,
        response_deserializer=message_class(method.response).FromString,
    )


def _request(model: str, version: str | None, body: bytes) -> Any:
    return message_class("PredictionsRequest")(model_name=model, model_version=version or "", input={INPUT_KEY: body})


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()
