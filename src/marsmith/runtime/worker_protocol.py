"""Protocol between the frontend and a Python worker of TorchServe: messages, responses and metric lines.

All integers are signed, 4 bytes, big-endian. A text or a body is its length in bytes, followed by the bytes. A list
ends with a length of -1. The worker's side is ``ts/protocol/otf_message_handler.py``; this is the frontend's side. The
module also parses metric lines in a worker's output.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from marsmith.errors import HandlerError

_END_OF_LIST = -1
# TorchServe's default of max_response_size; the frontend ends a worker that sends a longer field.
MAX_RESPONSE_BYTES = 6_553_500
STREAM_HEADER = "ts_stream_next"
STARTED_LINE = "Torch worker started."
_METRIC = re.compile(r"\[METRICS\](?P<name>.+?)\.(?P<unit>[^.:]*):(?P<value>[^|]+)\|#(?P<dimensions>[^|]*)\|")
_METRIC_REQUEST = re.compile(r"\|#hostname:[^,|]*,\d+,(?P<request>[^|]+)$")


class ByteStream(Protocol):
    """Source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return ``size`` bytes; fewer only at the end of the stream."""
        ...


@dataclass(frozen=True)
class LoadMessage:
    """Message to load one model.

    Attributes:
        model_name: name of the registered model.
        model_dir: absolute path of the folder with the archive's members.
        handler: the manifest's handler.
        batch_size: maximum size of a batch; at least 1.
        gpu_id: number of the GPU; None for the CPU.
        limit_max_image_pixels: whether Pillow's limit of image sizes stays on.
    """

    model_name: str
    model_dir: str
    handler: str
    batch_size: int = 1
    gpu_id: int | None = None
    limit_max_image_pixels: bool = True


@dataclass(frozen=True)
class Parameter:
    """One named part of a request; ``body`` if the request is not a form.

    Attributes:
        name: key in the mapping that the handler gets.
        value: the bytes; the worker decodes JSON and text by the content type.
        content_type: content type without parameters; empty if there is none.
    """

    name: str
    value: bytes
    content_type: str = ""


@dataclass(frozen=True)
class InferenceRequest:
    """One request of a batch.

    Attributes:
        request_id: a text that is not empty and unique in the batch.
        headers: headers of the HTTP request, with names as sent.
        parameters: parts that the handler gets as a mapping.
    """

    request_id: str
    headers: Mapping[str, str]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Prediction:
    """A worker's reply to one request.

    Attributes:
        request_id: id of the request.
        content_type: content type; empty if the handler set none.
        status: HTTP status code.
        phrase: reason phrase; usually empty.
        headers: headers that the handler set, including the content type.
        body: content.
    """

    request_id: str
    content_type: str
    status: int
    phrase: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class WorkerResponse:
    """A worker's response to one message.

    Attributes:
        code: 200 if each request has a reply of its own; otherwise the whole batch or the load failed.
        message: short reason.
        predictions: one for each request of the batch; empty for a load.
    """

    code: int
    message: str
    predictions: tuple[Prediction, ...] = ()

    @property
    def to_be_continued(self) -> bool:
        """Whether the handler streams, and more responses to the same batch follow."""
        return any(prediction.headers.get(STREAM_HEADER) == "true" for prediction in self.predictions)


@dataclass(frozen=True)
class WorkerMetric:
    """One measurement that a worker printed.

    Attributes:
        name: name such as ``HandlerTime``.
        unit: TorchServe's name of the unit, such as ``Milliseconds``.
        value: value in that unit.
        dimensions: dimensions such as ``{"ModelName": "m", "Level": "Model"}``.
        request_id: ids of the requests that it belongs to, separated by commas; empty for none.
    """

    name: str
    unit: str
    value: float
    dimensions: Mapping[str, str]
    request_id: str = ""


def encode_load(message: LoadMessage) -> bytes:
    """Encode the message to load a model."""
    return b"".join(
        (
            b"L",
            _field(message.model_name.encode()),
            _field(message.model_dir.encode()),
            _int(max(1, message.batch_size)),
            _field(message.handler.encode()),
            _int(-1 if message.gpu_id is None else message.gpu_id),
            _field(b""),  # The envelope is empty: marsmith's server config never sets service_envelope.
            struct.pack("!?", message.limit_max_image_pixels),
        )
    )


def encode_predict(batch: Sequence[InferenceRequest]) -> bytes:
    """Encode the message to answer one batch."""
    return b"".join((b"I", *(_request(request) for request in batch), _int(_END_OF_LIST)))


def decode_response(stream: ByteStream, *, max_field_bytes: int = MAX_RESPONSE_BYTES) -> WorkerResponse:
    """Read exactly one response.

    Raises:
        HandlerError: the response is truncated, breaks the protocol, or has a field longer than ``max_field_bytes``.
    """
    reader = _Reader(stream, max_field_bytes)
    code, message = reader.integer(), reader.text()
    predictions = []
    while (length := reader.integer()) != _END_OF_LIST:
        request_id = reader.block(length).decode("utf-8", "replace")
        content_type, status, phrase = reader.text(), reader.integer(), reader.text()
        headers = {reader.text(): reader.text() for _ in range(reader.count())}
        predictions.append(Prediction(request_id, content_type, status, phrase, headers, reader.field()))
    return WorkerResponse(code, message, tuple(predictions))


def parse_metric(line: str) -> WorkerMetric | None:
    """Parse a metric line of a worker's output; None for other lines."""
    match = _METRIC.match(line.removeprefix("INFO > "))
    if not match:
        return None
    try:
        value = float(match["value"])
    except ValueError:
        return None
    pairs = (pair.partition(":") for pair in match["dimensions"].split(",") if pair)
    request = _METRIC_REQUEST.search(line)
    dimensions = {name: text for name, _, text in pairs}
    return WorkerMetric(match["name"], match["unit"], value, dimensions, request["request"] if request else "")


def _int(value: int) -> bytes:
    return struct.pack("!i", value)


def _field(value: bytes) -> bytes:
    return _int(len(value)) + value


def _request(request: InferenceRequest) -> bytes:
    parts = [_field(request.request_id.encode())]
    for name, value in request.headers.items():
        parts += _field(name.encode()), _field(value.encode())
    parts.append(_int(_END_OF_LIST))
    for parameter in request.parameters:
        parts += _field(parameter.name.encode()), _field(parameter.content_type.encode()), _field(parameter.value)
    parts.append(_int(_END_OF_LIST))
    return b"".join(parts)


class _Reader:
    """Reads the parts of a response, and rejects impossible lengths."""

    def __init__(self, stream: ByteStream, max_field_bytes: int) -> None:
        self._stream = stream
        self._max = max_field_bytes

    def integer(self) -> int:
        (value,) = struct.unpack("!i", self._exactly(4))
        return int(value)

    def count(self) -> int:
        count = self.integer()
        if count < 0:
            raise _broken(f"a list of {count} headers")
        return count

    def block(self, length: int) -> bytes:
        if length < 0:
            raise _broken(f"a field of {length} bytes")
        if length > self._max:
            raise HandlerError(
                f"the reply has {length:,} bytes, but TorchServe's limit is {self._max:,}",
                tip="return less, or raise max_response_size in config.properties",
            )
        return self._exactly(length)

    def field(self) -> bytes:
        return self.block(self.integer())

    def text(self) -> str:
        return self.field().decode("utf-8", "replace")

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise _broken(f"{len(data)} bytes instead of the announced {size}")
        return data


def _broken(what: str) -> HandlerError:
    return HandlerError(
        f"the worker's reply breaks TorchServe's wire protocol: {what}",
        tip="keep content types, status phrases and header values ASCII; the announced length of others is too short",
    )
