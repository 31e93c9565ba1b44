"""Our definition of the inference API over gRPC against the one inside the installed TorchServe."""

from __future__ import annotations

import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from marsmith.client.calls import Prediction
from marsmith.client.grpc import metadata, rest_reply
from marsmith.client.grpc_messages import MESSAGES as OURS
from marsmith.client.grpc_messages import METHODS, PACKAGE, RPC_STATUS, SERVICE, Field, message_class

JAR = Path(next(iter(find_spec("ts").submodule_search_locations))) / "frontend" / "model-server.jar"  # type: ignore


def proto(name: str) -> str:
    with zipfile.ZipFile(JAR) as jar:
        text = jar.read(name).decode()
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def fields_in(text: str, message: str) -> list[Field]:
    body = re.search(rf"message {message} {{(.*?)}}", text, re.DOTALL)
    assert body, message
    found = re.findall(r"(?:(optional|repeated) )?([\w.]+(?:<[^>]+>)?) (\w+) = (\d+);", body[1])
    return [Field(name, int(number), kind, label) for label, kind, name, number in found]


def shipped() -> str:
    return proto("proto/inference.proto")


def test_the_messages_are_those_of_the_installed_server_field_by_field() -> None:
    assert re.findall(r"message (\w+)", shipped()) == list(OURS)
    for name, fields in OURS.items():
        assert fields_in(shipped(), name) == list(fields)
    status = [Field(f.name, f.number, f.type.removeprefix("google.protobuf."), f.label) for f in RPC_STATUS]
    theirs = fields_in(proto("google/rpc/status.proto"), "Status")
    assert [Field(f.name, f.number, f.type.removeprefix("google.protobuf."), f.label) for f in theirs] == status


def test_the_calls_are_those_of_the_installed_server() -> None:
    found = re.findall(r"rpc (\w+)\((stream )?([\w.]+)\) returns \((stream )?([\w.]+)\)", shipped())
    assert [(name, m.request, m.response, m.streams_requests, m.streams_responses) for name, m in METHODS.items()] == [
        (name, request, response, bool(sends), bool(answers)) for name, sends, request, answers, response in found
    ]
    assert f"package {PACKAGE};" in shipped()
    assert f"service {SERVICE.rpartition('.')[2]} " in shipped()


SCALARS = {"string": FieldDescriptor.TYPE_STRING, "bytes": FieldDescriptor.TYPE_BYTES}


@pytest.mark.parametrize("message", list(OURS))
def test_the_built_descriptors_say_what_the_definition_says(message: str) -> None:
    descriptor: Descriptor = message_class(message).DESCRIPTOR
    assert descriptor.full_name == f"{PACKAGE}.{message}"
    for field in fields_in(shipped(), message):
        built = descriptor.fields_by_number[field.number]
        assert built.name == field.name
        if field.type.startswith("map<"):
            entry = built.message_type
            assert entry.GetOptions().map_entry
            assert built.is_repeated
            assert [entry.fields_by_name[part].type for part in ("key", "value")] == [
                SCALARS[kind] for kind in re.findall(r"\w+", field.type)[1:]
            ]
        elif "." in field.type:
            assert built.message_type.full_name == field.type
        else:
            assert built.type == SCALARS[field.type]
            assert built.has_presence == (field.label == "optional")


def test_a_request_is_encoded_as_protobuf_says() -> None:
    request = message_class("PredictionsRequest")(model_name="m", input={"body": b"\x00"})
    # Field 1, two bytes long, then field 3 with a map entry of key and value.
    assert request.SerializeToString() == b"\x0a\x01m\x1a\x09\x0a\x04body\x12\x01\x00"
    assert message_class("PredictionsRequest").FromString(request.SerializeToString()) == request


@pytest.mark.parametrize(
    ("code", "details", "status", "kind"),
    [
        ("PERMISSION_DENIED", "Token Authorization failed. Token either incorrect", 400, "InvalidKeyException"),
        (
            "INTERNAL",
            "Model not found: m\norg.pytorch.serve.archive.model.ModelNotFoundException",
            404,
            "ModelNotFoundException",
        ),
        (
            "INTERNAL",
            'Model "m" has no worker to serve inference request. Please\nInternalServerException.()',
            503,
            "ServiceUnavailableException",
        ),
        (
            "UNAVAILABLE",
            "Prediction failed\norg.pytorch.serve.http.InternalServerException",
            503,
            "InternalServerException",
        ),
        ("INTERNAL", "Worker died.\norg.pytorch.serve.http.InternalServerException", 500, "InternalServerException"),
        ("RESOURCE_EXHAUSTED", "gRPC message exceeds maximum size", 429, "RESOURCE_EXHAUSTED"),
    ],
)
def test_a_grpc_failure_becomes_the_reply_that_rest_gives(code: str, details: str, status: int, kind: str) -> None:
    reply = rest_reply(code, details)
    assert reply.status == status
    assert reply.json()["type"] == kind
    assert "org.pytorch" not in reply.json()["message"]


def test_a_call_that_must_not_be_processed_twice_says_so_to_the_front() -> None:
    assert metadata("t") == (("authorization", "Bearer t"),)
    assert metadata("t", idempotent=False) == (("authorization", "Bearer t"), ("marsmith-idempotent", "false"))
    assert Prediction("m", b"", idempotent=False).request("http://h").headers["marsmith-idempotent"] == "false"
    assert Prediction("m", b"").request("http://h").headers == {}
