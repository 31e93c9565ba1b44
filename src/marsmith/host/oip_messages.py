"""Messages of the Open Inference Protocol over gRPC, and between them and KServe v2 in JSON, which handlers read.

The definition states the same as ``open_inference_grpc.proto``, except that nested messages stand at the top and the
choice of a parameter is three optional fields: on the wire there is no difference.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from functools import cache
from typing import Any

from marsmith.client.grpc_messages import Field, definition
from marsmith.errors import MissingDependencyError
from marsmith.json_reader import read_json

_PACKAGE = "inference"
_PARAMETERS = f"map<string, {_PACKAGE}.InferParameter>"
_LENGTH = struct.Struct("<I")


def _fields(*lines: str) -> tuple[Field, ...]:
    """Parse fields such as ``repeated int64 shape``, numbered in their order."""
    found = []
    for number, line in enumerate(lines, start=1):
        *label, kind, name = line.rsplit(" ", 2) if "map<" not in line else line.rsplit(" ", 1)
        found.append(Field(name, number, kind, label[0] if label else ""))
    return tuple(found)


MESSAGES: Mapping[str, tuple[Field, ...]] = {
    "ServerLiveRequest": (),
    "ServerLiveResponse": _fields("bool live"),
    "ServerReadyRequest": (),
    "ServerReadyResponse": _fields("bool ready"),
    "ModelReadyRequest": _fields("string name", "string version"),
    "ModelReadyResponse": _fields("bool ready"),
    "ServerMetadataRequest": (),
    "ServerMetadataResponse": _fields("string name", "string version", "repeated string extensions"),
    "ModelMetadataRequest": _fields("string name", "string version"),
    "TensorMetadata": _fields("string name", "string datatype", "repeated int64 shape"),
    "ModelMetadataResponse": _fields(
        "string name",
        "repeated string versions",
        "string platform",
        f"repeated {_PACKAGE}.TensorMetadata inputs",
        f"repeated {_PACKAGE}.TensorMetadata outputs",
    ),
    "InferParameter": _fields("optional bool bool_param", "optional int64 int64_param", "optional string string_param"),
    "InferTensorContents": _fields(
        "repeated bool bool_contents",
        "repeated int32 int_contents",
        "repeated int64 int64_contents",
        "repeated uint32 uint_contents",
        "repeated uint64 uint64_contents",
        "repeated float fp32_contents",
        "repeated double fp64_contents",
        "repeated bytes bytes_contents",
    ),
    "Tensor": _fields(
        "string name",
        "string datatype",
        "repeated int64 shape",
        f"{_PARAMETERS} parameters",
        f"{_PACKAGE}.InferTensorContents contents",
    ),
    "RequestedOutput": _fields("string name", f"{_PARAMETERS} parameters"),
    "ModelInferRequest": _fields(
        "string model_name",
        "string model_version",
        "string id",
        f"{_PARAMETERS} parameters",
        f"repeated {_PACKAGE}.Tensor inputs",
        f"repeated {_PACKAGE}.RequestedOutput outputs",
        "repeated bytes raw_input_contents",
    ),
    "ModelInferResponse": _fields(
        "string model_name",
        "string model_version",
        "string id",
        f"{_PARAMETERS} parameters",
        f"repeated {_PACKAGE}.Tensor outputs",
        "repeated bytes raw_output_contents",
    ),
}
_CONTENTS = {
    "BOOL": "bool_contents",
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    "INT64": "int64_contents",
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@cache
def message_class(name: str) -> Any:
    """Return the class of a message of ``MESSAGES``."""
    try:
        from google.protobuf import descriptor_pool, message_factory
    except ImportError:
        raise MissingDependencyError("protobuf", extra="grpc") from None
    return message_factory.GetMessageClass(_pool(descriptor_pool).FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _pool(module: Any) -> Any:
    pool = module.DescriptorPool()
    pool.AddSerializedFile(definition("open_inference.proto", _PACKAGE, MESSAGES))
    return pool


def to_v2(request: Any) -> tuple[bytes, int]:
    """Return a ``ModelInferRequest`` as KServe v2: JSON with tensors behind it, and the length of the JSON.

    Raises:
        ValueError: raw contents that do not belong to the inputs.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise ValueError(f"{len(raw)} raw contents for {len(request.inputs)} inputs")
    inputs, behind = [], []
    for place, tensor in enumerate(request.inputs):
        one: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        binary = raw[place] if raw else _elements(tensor.contents.bytes_contents)
        if binary:
            one["parameters"] = {"binary_data_size": len(binary)}
            behind.append(binary)
        else:
            contents = _CONTENTS.get(tensor.datatype)
            one["data"] = list(getattr(tensor.contents, contents)) if contents else []
        inputs.append(one)
    head = json.dumps({**({"id": request.id} if request.id else {}), "inputs": inputs}).encode()
    return b"".join((head, *behind)), len(head)


def from_v2(body: bytes, model: str, version: str) -> Any:
    """Return a reply in KServe v2 as a ``ModelInferResponse``.

    Raises:
        ValueError: it is not one.
    """
    value = read_json(body)
    outputs = value.get("outputs") if isinstance(value, dict) else None
    if not isinstance(outputs, list):
        raise ValueError("the handler did not answer in KServe v2")  # noqa: TRY004 - of the text, not of a type
    names = {"model_name": model, "model_version": version, "id": str(value.get("id", ""))}
    response = message_class("ModelInferResponse")(**names)
    for one in outputs:
        added = response.outputs.add(name=one["name"], datatype=one["datatype"], shape=one["shape"])
        contents = _CONTENTS.get(one["datatype"])
        if contents is None:
            added.contents.bytes_contents.extend(map(_as_bytes, one["data"]))
        else:
            getattr(added.contents, contents).extend(one["data"])
    return response


def _elements(contents: Any) -> bytes:
    """Return elements of a tensor of bytes as one block, each behind its length."""
    return b"".join(part for each in contents for part in (_LENGTH.pack(len(each)), each))


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
