"""What TorchServe's frontend does between HTTP and a worker: requests to messages, answers to replies.

Rules of TorchServe 0.12.0 (InferenceRequestHandler, RestJob, NettyUtils), held equal to a live server by a test. The
limits of a server config are not applied, but for the default of max_response_size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import unquote_plus

from marsmith.json_reader import read_json
from marsmith.runtime.worker_protocol import InferenceRequest, Parameter, Prediction, WorkerResponse

_FORM = "multipart/form-data"
_URLENCODED = "application/x-www-form-urlencoded"
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TRANSFER_ENCODINGS = ("", "7bit", "8bit", "binary")
_OUT_OF_MEMORY = 413
WORKER_DIED = "Worker died."


@dataclass(frozen=True)
class Request:
    """One HTTP request to ``/predictions/{model}``.

    Attributes:
        body: as sent; a form (multipart or urlencoded) is taken apart by its content type.
        content_type: None where none is sent.
        headers: further headers, names as a client would write them.
        name: the key under which the handler gets the body.
    """

    body: bytes
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "body"


@dataclass(frozen=True)
class RunnerReply:
    """What an HTTP client would get.

    Attributes:
        status: HTTP status code.
        content_type: empty where the handler set none.
        headers: those that the handler set, and ``x-request-id``.
        body: the reply's bytes.
    """

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, read as JSON; raises ValueError where it is not."""
        return read_json(self.body)


class FormError(ValueError):
    """A form that the frontend refuses, before any worker sees it."""


def to_message(request: Request, request_id: str) -> InferenceRequest:
    """Return what the frontend sends to a worker for ``request``.

    Raises:
        FormError: the body is a form that the frontend cannot read.
    """
    return InferenceRequest(request_id, _headers(request), tuple(_parameters(request)))


def to_replies(request_ids: Iterable[str], responses: Iterable[WorkerResponse]) -> dict[str, RunnerReply]:
    """Return the reply to each request of a batch, by its id.

    Args:
        request_ids: of the batch.
        responses: one, or several where the handler streams; a streamed body is the sum of its parts.
    """
    replies: dict[str, RunnerReply] = {}
    for response in responses:
        if response.code != 200:
            return {request_id: error_reply(response.code, response.message, request_id) for request_id in request_ids}
        for prediction in response.predictions:
            replies[prediction.request_id] = _joined(replies.get(prediction.request_id), prediction)
    return replies


def error_reply(code: int, message: str, request_id: str, kind: str = "InternalServerException") -> RunnerReply:
    """Return the JSON reply that the frontend makes itself when a batch or a worker failed."""
    status = 507 if code == _OUT_OF_MEMORY else code
    body = json.dumps({"code": status, "type": kind, "message": message}, indent=2, ensure_ascii=False) + "\n"
    content_type = "application/json"
    headers = {"content-type": content_type, "x-request-id": request_id}
    return RunnerReply(status, content_type, headers, body.encode())


def _joined(before: RunnerReply | None, prediction: Prediction) -> RunnerReply:
    if before:
        return RunnerReply(before.status, before.content_type, before.headers, before.body + prediction.body)
    headers = {**prediction.headers, "x-request-id": prediction.request_id}
    return RunnerReply(prediction.status, prediction.content_type, headers, prediction.body)


def _headers(request: Request) -> dict[str, str]:
    """Return the headers as a worker gets them: names as sent, and two that the frontend adds last."""
    type_header = {} if request.content_type is None else {"Content-Type": request.content_type}
    length = {"Content-Length": str(len(request.body))}
    return {**type_header, **length, **request.headers, "url_path": "", "explain": "False"}


def _parameters(request: Request) -> Iterator[Parameter]:
    content_type = request.content_type or ""
    mime_type = content_type.partition(";")[0]
    boundary = _boundary(content_type)
    if boundary is not None:
        yield from parse_multipart(request.body, boundary)
    elif mime_type.lower() == _URLENCODED:
        yield from parse_urlencoded(request.body)
    else:
        yield Parameter(request.name, request.body, mime_type)


def _boundary(content_type: str) -> bytes | None:
    """Return the boundary of a multipart form; None for all other content types."""
    mime_type, *attributes = content_type.split(";")
    if mime_type.strip() != _FORM:  # the frontend minds the case here, against the standard
        return None
    for attribute in attributes:
        name, _, value = attribute.strip().partition("=")
        if name.lower() == "boundary":
            return value.strip().strip('"').encode()
    return None


def parse_urlencoded(body: bytes) -> list[Parameter]:
    """Take ``a=1&b=two+words`` apart, as the frontend does.

    Raises:
        FormError: a pair without a name, or a percent sign without two hexadecimal digits.
    """
    pairs = [pair.partition("=") for pair in body.decode("utf-8", "replace").removesuffix("&").split("&") if body]
    if any(not name for name, _, _ in pairs):
        raise FormError("java.lang.IllegalArgumentException: empty name")
    return [Parameter(_unquoted(name), _unquoted(value).encode()) for name, _, value in pairs]


def _unquoted(text: str) -> str:
    bad = _BAD_ESCAPE.search(text)
    if bad and len(text) - bad.start() < 3:
        raise FormError(f"Bad string: '{text}'")
    if bad:
        raise FormError(f"Invalid hex byte at index '{bad.start()}' in string: '{text}'")
    return unquote_plus(text)


def parse_multipart(body: bytes, boundary: bytes) -> list[Parameter]:
    """Take a multipart form apart, as the frontend does.

    A last part that is cut off is dropped; all of it, where something stands before the first delimiter.

    Raises:
        FormError: a part has no name, or is a file with a transfer encoding other than 7bit, 8bit and binary.
    """
    delimiter = re.compile(rb"(?:^|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?:\r?\n|$)")
    marks = list(delimiter.finditer(body))
    if marks and body[: marks[0].start()].strip():
        return []
    parameters = []
    for start, end in pairwise(marks):
        if start[1]:
            break
        # The line break that ends one delimiter may also begin the next one.
        parameters.append(_part(body[start.end() : max(start.end(), end.start())]))
    return parameters


def _part(part: bytes) -> Parameter:
    head, value = (*re.split(rb"\r?\n\r?\n", part, maxsplit=1), b"")[:2]
    headers = dict(_header_lines(head.decode("utf-8", "replace")))
    attributes = _attributes(headers.get("content-disposition", ""))
    if "name" not in attributes:
        raise FormError("a part of the form has no name")
    if "filename" not in attributes:
        return Parameter(attributes["name"], value)
    if headers.get("content-transfer-encoding", "").lower() not in _TRANSFER_ENCODINGS:
        raise FormError(f"TransferEncoding Unknown: {headers['content-transfer-encoding']}")
    content_type = headers.get("content-type", "application/octet-stream").partition(";")[0].strip()
    return Parameter(attributes["name"], value, content_type)


def _header_lines(head: str) -> Iterator[tuple[str, str]]:
    for line in head.splitlines():
        name, _, value = line.partition(":")
        yield name.strip().lower(), value.strip()


def _attributes(disposition: str) -> dict[str, str]:
    """Return the attributes of a Content-Disposition header."""
    found = re.findall(r';\s*([\w*-]+)=("(?:[^"\\]|\\.)*"|[^;]*)', disposition)
    return {name.lower(): value.strip().strip('"') for name, value in found}
