"""Envelopes of requests: raw bodies, forms, JSON and KServe's formats; and the replies in the same envelope.

One HTTP request may contain several requests for the model. ``open_envelope`` extracts them. ``seal`` puts the replies
into the corresponding form:

==========  =============================================================  ==========================================
form        request                                                        reply
==========  =============================================================  ==========================================
``one``     a raw body, one form field, ``{"data": ...}``, ``{"b64": ...}``  the reply
``many``    several form fields, a JSON list of texts or objects           ``[reply, ...]``
``v1``      ``{"instances": [...]}``                                       ``{"predictions": [reply, ...]}``
``v2``      ``{"inputs": [{"name", "shape", "datatype", "data"}, ...]}``   ``{"outputs": [{...}, ...], "id", ...}``
==========  =============================================================  ==========================================

Clients of KServe v2 may send the tensors behind the JSON, as bytes. The reply is always JSON, which they accept.

Nothing here reads a disk, a clock or a device. An invalid request raises an ``ItemError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from marsmith_handler import kserve_v2
from marsmith_handler.bounded_json import parse_json
from marsmith_handler.errors import BadRequest, ContentTooLarge, UnsupportedMediaType
from marsmith_handler.marks import Marks
from marsmith_handler.request import PAYLOAD_KEYS, Request, check_count, kind, unwrapped
from marsmith_handler.settings import HandlerSettings
from marsmith_handler.worker_messages import TOO_MANY_FIELDS

FORM_TYPE = "application/x-www-form-urlencoded"
# Types that do not describe the content; gRPC sends none.
VAGUE_TYPES = frozenset({"", "application/octet-stream", "text/plain"})


@dataclass(frozen=True)
class Envelope:
    """The requests in one HTTP request, and the form of the reply.

    Attributes:
        form: see the module.
        requests: for the model.
        v2_id: id that the sender of a KServe v2 request gave it; None: none.
        marks: what the id carried besides; None: nothing.
    """

    form: Literal["one", "many", "v1", "v2"]
    requests: tuple[Request, ...]
    v2_id: str | None = None
    marks: Marks | None = None


def open_envelope(
    fields: Mapping[str, Any], headers: Mapping[str, Any], max_items: int = HandlerSettings.max_items
) -> Envelope:
    """Extract the requests from one HTTP or gRPC request, as TorchServe passes it.

    Args:
        fields: form fields by name, or ``body`` alone: bytes, or a value that was decoded from JSON or text.
        headers: headers by name; under the name of a field, a mapping with that field's ``content-type``.
        max_items: most requests in it.

    Raises:
        ItemError: 400 the request does not follow the form that it claims; 413 too much content, which is checked
            before parsing; 415 a form that is not meant as one.
    """
    if TOO_MANY_FIELDS in fields:
        raise ContentTooLarge(f"a form with more fields than are read: at most {max_items} items are allowed")
    plain = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    _check_form(fields, plain)
    if not fields:
        raise BadRequest("the request has no body")
    check_count(len(fields), max_items)
    types = {name: _content_type(name, headers, alone=len(fields) == 1) for name in fields}
    parts = [Request(_decoded(value, types[name]), types[name], plain, name) for name, value in fields.items()]
    if len(parts) > 1:
        return Envelope("many", tuple(_replace(part, unwrapped(_parsed(part))) for part in parts))
    length = plain.get(kserve_v2.V2_JSON_LENGTH)
    if length is not None and isinstance(parts[0].body, bytes | bytearray):
        value, requests = kserve_v2.split_binary(parts[0], parts[0].body, length, max_items)
        return Envelope("v2", requests, *kserve_v2.id_of(value))
    return _open_part(parts[0], max_items)


def seal(envelope: Envelope, replies: Sequence[Any], *, model: str, version: str, request_id: str) -> Any:
    """Put the replies, one for each request, into the form of the envelope; JSON values, except for ``one``."""
    if envelope.form == "one":
        return replies[0]
    if envelope.form == "many":
        return list(replies)
    if envelope.form == "v1":
        return {"predictions": list(replies)}
    outputs = [
        kserve_v2.output_of(request.name, reply) for request, reply in zip(envelope.requests, replies, strict=True)
    ]
    return {**identity(envelope, model=model, version=version, request_id=request_id), "outputs": outputs}


def identity(envelope: Envelope, *, model: str, version: str, request_id: str) -> dict[str, str]:
    """Return the fields of a KServe v2 reply that identify the model and the request."""
    return {"id": envelope.v2_id or request_id, "model_name": model, "model_version": version}


def _check_form(fields: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    """Refuse a body that has a form's content type but is not a form, as ``curl -d`` sends everything.

    TorchServe has already split it at each ``=`` and ``&``. It drops a text without them completely.
    """
    meant = bool(fields) and fields.keys() <= set(PAYLOAD_KEYS)
    if not meant and _media_type(headers.get("content-type")) == FORM_TYPE:
        raise UnsupportedMediaType(
            f"the body came as {FORM_TYPE}, which is what curl -d sends, without a field named data: send it with "
            "-H 'Content-Type: text/plain' --data-binary TEXT, or application/json for JSON, or a file with -T FILE"
        )


def _open_part(part: Request, max_items: int) -> Envelope:
    value = _parsed(part)
    if isinstance(value, Mapping):
        if "instances" in value:
            return Envelope("v1", _each(part, value["instances"], "instances", max_items))
        if kserve_v2.looks_like_v2(value):
            requests = kserve_v2.requests_of(part, value["inputs"], max_items)
            return Envelope("v2", requests, *kserve_v2.id_of(value))
    value = unwrapped(value)
    # A list of numbers, or of lists, is one tensor; a list of texts or objects is several requests.
    if isinstance(value, list) and (not value or all(isinstance(item, str | Mapping) for item in value)):
        return Envelope("many", _each(part, value, "the list", max_items))
    return Envelope("one", (_replace(part, value),))


def _decoded(value: Any, content_type: str) -> Any:
    """Decode bytes that have a text type and are UTF-8, as TorchServe does."""
    if isinstance(value, bytes | bytearray) and content_type.startswith("text"):
        with suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    return value


def _parsed(part: Request) -> Any:
    """Parse a body that has JSON's type, or that looks like JSON and has a general type."""
    value = part.body
    if not isinstance(value, bytes | bytearray | str):
        return value
    if len(value) == 0:
        raise BadRequest(f"{part.name} is empty")
    if part.content_type == "application/json" or part.content_type.endswith("+json"):
        # A text with exactly this type is a JSON string that was parsed before.
        return value if isinstance(value, str) and part.content_type == "application/json" else parse_json(value)
    first = value[:16].lstrip()[:1]
    if part.content_type in VAGUE_TYPES and first in ("{", "[", b"{", b"["):
        with suppress(BadRequest):
            return parse_json(value)
    return value


def _each(part: Request, values: Any, where: str, max_items: int) -> tuple[Request, ...]:
    if not isinstance(values, list):
        raise BadRequest(f"{where} holds {kind(values)}, not a list")
    if not values:
        raise BadRequest(f"{where} is empty")
    check_count(len(values), max_items)
    return tuple(_replace(part, unwrapped(value)) for value in values)


def _replace(part: Request, body: Any) -> Request:
    # The type described the part, not the value that was extracted from it.
    content_type = part.content_type if body is part.body else ""
    return Request(body, content_type, part.headers, part.name)


def _content_type(name: str, headers: Mapping[str, Any], alone: bool) -> str:
    own = headers.get(name)
    given = own.get("content-type") if isinstance(own, Mapping) else None
    if not given and alone:
        named = (value for key, value in headers.items() if key.lower() == "content-type" and isinstance(value, str))
        given = next((value for value in named if not value.startswith("multipart/")), "")
    return _media_type(given)


def _media_type(value: Any) -> str:
    return str(value or "").partition(";")[0].strip().lower()
