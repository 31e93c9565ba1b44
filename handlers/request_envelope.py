"""How requests arrive: raw, in a form, in JSON, or in KServe's envelopes; and how their replies go back.

One HTTP request may hold several requests for the model. ``open_envelope`` takes them out, ``seal`` puts the replies
into the shape that answers the envelope:

==========  =============================================================  ==========================================
form        request                                                        reply
==========  =============================================================  ==========================================
``one``     a raw body, one form field, ``{"data": ...}``, ``{"b64": ...}``  the reply
``many``    several form fields, a JSON list of texts or objects           ``[reply, ...]``
``v1``      ``{"instances": [...]}``                                       ``{"predictions": [reply, ...]}``
``v2``      ``{"inputs": [{"name", "shape", "datatype", "data"}, ...]}``   ``{"outputs": [{...}, ...], "id", ...}``
==========  =============================================================  ==========================================

Clients of KServe v2 may send the tensors behind the JSON, as bytes; the reply is JSON all the same, which they accept.

Nothing here reads a disk, a clock or a device; what is wrong with a request is raised as an ``ItemError``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import kserve_v2
from item_errors import MalformedRequest
from model_request import Request, kind, parse_json, unwrapped

# Types that say nothing about the content: curl sends the second for -d, gRPC sends none.
VAGUE_TYPES = frozenset({"", "application/octet-stream", "text/plain"})


@dataclass(frozen=True)
class Envelope:
    """The requests that one HTTP request holds, and how their replies are to be sent back."""

    form: Literal["one", "many", "v1", "v2"]
    requests: tuple[Request, ...]
    v2_id: str | None = None


def open_envelope(fields: Mapping[str, Any], headers: Mapping[str, Any]) -> Envelope:
    """Take the requests out of what TorchServe hands over for one HTTP or gRPC request.

    Args:
        fields: form fields by name, or ``body`` alone: bytes, or what TorchServe has decoded from JSON or text.
        headers: headers by name; under the name of a field, a mapping with that field's ``content-type``.

    Raises:
        ItemError: 400 the request does not follow the form that it claims.
    """
    if not fields:
        raise MalformedRequest("the request has no body")
    plain = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    parts = [
        Request(value, _content_type(name, headers, alone=len(fields) == 1), plain, name)
        for name, value in fields.items()
    ]
    if len(parts) > 1:
        return Envelope("many", tuple(_replace(part, unwrapped(_parsed(part))) for part in parts))
    length = plain.get(kserve_v2.V2_JSON_LENGTH)
    if length is not None and isinstance(parts[0].body, bytes | bytearray):
        value, requests = kserve_v2.split_binary(parts[0], parts[0].body, length)
        return Envelope("v2", requests, v2_id=_text_or_none(value.get("id")))
    return _open_part(parts[0])


def seal(envelope: Envelope, replies: Sequence[Any], *, model: str, version: str, request_id: str) -> Any:
    """Put the replies, one a request, into the shape that answers the envelope; JSON values, but for ``one``."""
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
    """Return the fields by which a KServe v2 reply says who answers which request."""
    return {"id": envelope.v2_id or request_id, "model_name": model, "model_version": version}


def _open_part(part: Request) -> Envelope:
    value = _parsed(part)
    if isinstance(value, Mapping):
        if "instances" in value:
            return Envelope("v1", _each(part, value["instances"], "instances"))
        if kserve_v2.looks_like_v2(value):
            return Envelope("v2", kserve_v2.requests_of(part, value["inputs"]), v2_id=_text_or_none(value.get("id")))
    value = unwrapped(value)
    # A list of numbers, or of lists, is one tensor; a list of texts or objects is several requests.
    if isinstance(value, list) and (not value or all(isinstance(item, str | Mapping) for item in value)):
        return Envelope("many", _each(part, value, "the list"))
    return Envelope("one", (_replace(part, value),))


def _parsed(part: Request) -> Any:
    """Parse a body that is JSON by its type, or looks like JSON where the type says nothing."""
    value = part.body
    if not isinstance(value, bytes | bytearray | str):
        return value
    if len(value) == 0:
        raise MalformedRequest(f"{part.name} is empty")
    if isinstance(value, str) and part.content_type == "application/json":
        # TorchServe has parsed exactly this type already: the text is what a JSON string held.
        return value
    if part.content_type == "application/json" or part.content_type.endswith("+json"):
        return parse_json(value)
    first = value[:16].lstrip()[:1]
    if part.content_type in VAGUE_TYPES and first in ("{", "[", b"{", b"["):
        try:
            return parse_json(value)
        except MalformedRequest:
            return value
    return value


def _each(part: Request, values: Any, where: str) -> tuple[Request, ...]:
    if not isinstance(values, list):
        raise MalformedRequest(f"{where} holds {kind(values)}, not a list")
    if not values:
        raise MalformedRequest(f"{where} is empty")
    return tuple(_replace(part, unwrapped(value)) for value in values)


def _replace(part: Request, body: Any) -> Request:
    # The type told how to read the part; it says nothing about what was taken out of it.
    content_type = part.content_type if body is part.body else ""
    return Request(body, content_type, part.headers, part.name)


def _content_type(name: str, headers: Mapping[str, Any], alone: bool) -> str:
    own = headers.get(name)
    given = own.get("content-type") if isinstance(own, Mapping) else None
    if not given and alone:
        named = (value for key, value in headers.items() if key.lower() == "content-type" and isinstance(value, str))
        given = next((value for value in named if not value.startswith("multipart/")), "")
    return str(given or "").partition(";")[0].strip().lower()


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
