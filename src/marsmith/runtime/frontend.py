"""TorchServe's frontend between HTTP and a worker: converts requests to messages, and responses to replies.

The rules are those of TorchServe 0.12.0 (InferenceRequestHandler, RestJob, NettyUtils); a test compares them with a
live server. The limits of a server config are not applied, except for the default of max_response_size.
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
URLENCODED = "application/x-www-form-urlencoded"
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TRANSFER_ENCODINGS = ("", "7bit", "8bit", "binary")
_OUT_OF_MEMORY = 413
WORKER_DIED = "Worker died."


@dataclass(frozen=True)
class Request:
    """One HTTP request to ``/predictions/{model}``.

    Attributes:
        body: content; a form (multipart or urlencoded) is parsed by its content type.
        content_type: content type; None to send none.
        headers: further headers, with names in any case.
        name: key of the body in the handler's data.
    """

    body: bytes
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "body"


@dataclass(frozen=True)
class RunnerReply:
    """The reply that an HTTP client would get.

    Attributes:
        status: HTTP status code.
        content_type: content type; empty if the handler set none.
        headers: headers that the handler set, and ``x-request-id``.
        body: content.
    """

    status: int
    content_type: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body as JSON; raises ValueError if it is not JSON."""
        return read_json(self.body)


class FormError(ValueError):
    """The frontend refuses a form before a worker gets it."""


def to_message(request: Request, request_id: str) -> InferenceRequest:
    """Return the message of the frontend to a worker for ``request``.

    Raises:
        FormError: the frontend cannot parse the form.
    """
    return InferenceRequest(request_id, _headers(request), tuple(parameters(request)))


def to_replies(request_ids: Iterable[str], responses: Iterable[WorkerResponse]) -> dict[str, RunnerReply]:
    """Return the reply to each request of a batch, by its id.

    Args:
        request_ids: ids of the batch.
        responses: one response, or several if the handler streams; a streamed body is the concatenation of its parts.
    """
    replies: dict[str, RunnerReply] = {}
    for response in responses:
        if response.code != 200:
            return {request_id: error_reply(response.code, response.message, request_id) for request_id in request_ids}
        for prediction in response.predictions:
            replies[prediction.request_id] = _joined(replies.get(prediction.request_id), prediction)
    return replies


def error_reply(code: int, message: str, request_id: str, kind: str = "InternalServerException") -> RunnerReply:
    """Return the JSON reply of the frontend itself if a batch or a worker failed."""
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
    """Return the headers as a worker gets them: names as sent, and two that the frontend appends."""
    type_header = {} if request.content_type is None else {"Content-Type": request.content_type}
    length = {"Content-Length": str(len(request.body))}
    return {**type_header, **length, **request.headers, "url_path": "", "explain": "False"}


def parameters(request: Request) -> Iterator[Parameter]:
    """Yield the named parts of a request; raises FormError if its form cannot be parsed."""
    content_type = request.content_type or ""
    mime_type = content_type.partition(";")[0]
    boundary = boundary_of(content_type)
    if boundary is not None:
        yield from parse_multipart(request.body, boundary)
    elif mime_type.lower() == URLENCODED:
        yield from parse_urlencoded(request.body)
    else:
        yield Parameter(request.name, request.body, mime_type)


def boundary_of(content_type: str) -> bytes | None:
    """Return the boundary of a multipart form; None for other content types."""
    mime_type, *attributes = content_type.split(";")
    if mime_type.strip() != _FORM:  # Contrary to the standard, the frontend compares case-sensitively here.
        return None
    for attribute in attributes:
        name, _, value = attribute.strip().partition("=")
        if name.lower() == "boundary":
            return value.strip().strip('"').encode()
    return None


def parse_urlencoded(body: bytes) -> list[Parameter]:
    """Parse ``a=1&b=two+words`` as the frontend does.

    Raises:
        FormError: a pair has no name, or a percent sign is not followed by two hexadecimal digits.
    """
    *texts, last = body.decode("utf-8", "replace").split("&")
    # The frontend drops a name at the end that no equals sign follows.
    pairs = [text.partition("=") for text in (*texts, *([last] if "=" in last else []))]
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
    """Parse a multipart form as the frontend does.

    A truncated last part is dropped. The whole form is dropped if there is text before the first delimiter.

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
        # The line break after one delimiter may also begin the next one.
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
