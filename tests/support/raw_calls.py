"""Calls that no well-behaved client makes: paths, headers and messages exactly as they are given."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc

INFERENCE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "org.pytorch.serve.grpc.management.ManagementAPIsService"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """The Java exception that the reply names."""
        return str(json.loads(self.body)["type"])


def call(
    url: str,
    method: str,
    path: str,
    token: str | None = None,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request whose path goes out byte for byte."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    bearer = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body, {**bearer, **(headers or {})})
        reply = connection.getresponse()
        names = {name.lower(): value for name, value in reply.getheaders()}
        return Answer(reply.status, names, reply.read())
    finally:
        connection.close()


def open_request(url: str, length: int, sent: bytes) -> socket.socket:
    """Begin a prediction of ``length`` bytes, send some of them, and leave it at that."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=10)
    head = f"POST /predictions/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def grpc_code(address: str, service: str, method: str, fields: Mapping[int, Any], token: str | None) -> str:
    """Call ``method`` with a message of these fields (number -> text, truth or number); return the status' name."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(f"/{service}/{method}")(message(fields), metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def message(fields: Mapping[int, Any]) -> bytes:
    """Encode a protobuf message of texts and whole numbers."""
    parts = []
    for number, value in fields.items():
        if isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(int(value)))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(_varint(number << 3 | 2) + _varint(len(content)) + content)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
