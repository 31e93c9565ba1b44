"""Messages of TorchServe's inference API over gRPC, built from the definition below.

TorchServe ships no Python stubs. The definition states the same as its ``inference.proto``; a test compares the two,
field by field, with the file in the installed server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from marsmith.errors import MissingDependencyError

PACKAGE = "org.pytorch.serve.grpc.inference"
SERVICE = f"{PACKAGE}.InferenceAPIsService"
EMPTY = "google.protobuf.Empty"
STATUS = "google.rpc.Status"
# Key of the body of a REST request in the handler. With it, the handler treats both APIs alike.
INPUT_KEY = "body"


@dataclass(frozen=True)
class Field:
    """One field of a message: ``type`` is a scalar of proto3, the full name of a message, or ``map<string, type>``."""

    name: str
    number: int
    type: str
    label: str = ""


@dataclass(frozen=True)
class Method:
    """One call: the names of its messages, and whether each side sends a stream."""

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


def predictions_request(model: str, version: str | None, body: bytes) -> Any:
    """Return the request message of a prediction."""
    return message_class("PredictionsRequest")(model_name=model, model_version=version or "", input={INPUT_KEY: body})


@cache
def message_class(name: str) -> Any:
    """Return the class of a message: one of ``MESSAGES``, or a full name that one of them uses."""
    from google.protobuf import message_factory

    full_name = f"{PACKAGE}.{name}" if name in MESSAGES else name
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(full_name))


@cache
def _pool() -> Any:
    """Build a separate pool: the shared one may contain other stubs of TorchServe."""
    try:
        from google.protobuf import any_pb2, descriptor_pool, empty_pb2
    except ImportError:
        raise MissingDependencyError("protobuf", extra="grpc") from None
    pool = descriptor_pool.DescriptorPool()
    for known in (any_pb2, empty_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    status = "google/rpc/status.proto"
    pool.AddSerializedFile(definition(status, "google.rpc", {"Status": RPC_STATUS}, [any_pb2.DESCRIPTOR.name]))
    needed = [empty_pb2.DESCRIPTOR.name, status]
    pool.AddSerializedFile(definition("inference.proto", PACKAGE, MESSAGES, needed))
    return pool


def definition(
    name: str, package: str, messages: Mapping[str, Sequence[Field]], dependencies: Sequence[str] = ()
) -> bytes:
    """Return a .proto file as its serialized descriptor."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto(
        name=name, package=package, syntax="proto3", dependency=list(dependencies)
    )
    for message, fields in messages.items():
        _add_message(file, message, fields)
    serialized: bytes = file.SerializeToString()
    return serialized


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
            # proto3 records in a separate oneof whether such a field was set.
            added.proto3_optional, added.oneof_index = True, len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")


def _make_map(message: Any, added: Any, owner: str, field: Field) -> None:
    """Make ``added`` a map: on the wire, a repeated message of a key and a value."""
    key, value = field.type.removeprefix("map<").removesuffix(">").split(", ")
    entry = message.nested_type.add(name=f"{field.name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_label(""), type=_scalar(key))
    held = entry.field.add(name="value", number=2, label=_label(""))
    if "." in value:
        held.type, held.type_name = held.TYPE_MESSAGE, f".{value}"
    else:
        held.type = _scalar(value)
    added.label, added.type, added.type_name = _label("repeated"), added.TYPE_MESSAGE, f"{owner}.{entry.name}"


def _label(label: str) -> Any:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    return FieldDescriptorProto.LABEL_REPEATED if label == "repeated" else FieldDescriptorProto.LABEL_OPTIONAL


def _scalar(name: str) -> Any:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    return FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}")
