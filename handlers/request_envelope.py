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

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from item_errors import MalformedRequest, UnknownType

# Where TorchServe's own handlers and envelopes look for the input in a form or an object, in their order.
PAYLOAD_KEYS = ("data", "body", "b64")
# How long the JSON is, where the tensors of a KServe v2 request stand behind it as bytes.
V2_JSON_LENGTH = "inference-header-content-length"
# Types that say nothing about the content: curl sends the second for -d, gRPC sends none.
VAGUE_TYPES = frozenset({"", "application/octet-stream", "text/plain"})
V2_DTYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


@dataclass(frozen=True)
class Request:
    """One request for the model.

    Attributes:
        body: bytes or bytearray; or what stood in JSON: text, number, list, mapping; or, from a KServe v2 tensor, a
            numpy array.
        content_type: media type in lower case, without parameters; empty where the sender gave none.
        headers: headers of the HTTP request that held it; names in lower case.
        name: name of the form field or of the KServe v2 input.
    """

    body: Any
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "body"

    @property
    def payload(self) -> Any:
        """The body; of a mapping with ``data``, ``body`` or ``b64``, the value there (base64 decoded for ``b64``)."""
        if isinstance(self.body, Mapping):
            for key in PAYLOAD_KEYS:
                if key in self.body:
                    return unwrapped({key: self.body[key]})
        return self.body

    def as_bytes(self) -> bytes | bytearray:
        """Return the payload as bytes; text is taken as base64, a row of UINT8 as the bytes that it is.

        Raises:
            ItemError: 400 not base64; 415 neither bytes nor text.
        """
        payload = self.payload
        if isinstance(payload, bytes | bytearray):
            return payload
        if isinstance(payload, str):
            return decode_base64(payload)
        if isinstance(payload, np.ndarray) and payload.dtype == np.uint8 and payload.ndim == 1:
            return payload.tobytes()
        raise UnknownType(f"expected bytes, or base64 text in JSON, not {_kind(payload)}")

    def as_text(self) -> str:
        """Return the payload as text, decoded as UTF-8.

        Raises:
            ItemError: 400 not UTF-8; 415 neither text nor bytes.
        """
        payload = self.payload
        if isinstance(payload, str):
            return payload
        if isinstance(payload, bytes | bytearray):
            try:
                return payload.decode("utf-8")
            except UnicodeDecodeError as error:
                raise MalformedRequest(f"not UTF-8 text: {error.reason} at byte {error.start}") from None
        raise UnknownType(f"expected text, not {_kind(payload)}")

    def as_json(self) -> Any:
        """Return the body as a JSON value, parsed where it came as bytes or text.

        Raises:
            ItemError: 400 not JSON.
        """
        return parse_json(self.body) if isinstance(self.body, bytes | bytearray | str) else self.body


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
    if V2_JSON_LENGTH in plain and isinstance(parts[0].body, bytes | bytearray):
        return _open_binary(parts[0], parts[0].body, plain[V2_JSON_LENGTH])
    return _open_part(parts[0])


def seal(envelope: Envelope, replies: Sequence[Any], *, model: str, version: str, request_id: str) -> Any:
    """Put the replies, one a request, into the shape that answers the envelope; JSON values, but for ``one``."""
    if envelope.form == "one":
        return replies[0]
    if envelope.form == "many":
        return list(replies)
    if envelope.form == "v1":
        return {"predictions": list(replies)}
    outputs = [_v2_output(request.name, reply) for request, reply in zip(envelope.requests, replies, strict=True)]
    return {**identity(envelope, model=model, version=version, request_id=request_id), "outputs": outputs}


def identity(envelope: Envelope, *, model: str, version: str, request_id: str) -> dict[str, str]:
    """Return the fields by which a KServe v2 reply says who answers which request."""
    return {"id": envelope.v2_id or request_id, "model_name": model, "model_version": version}


def parse_json(text: bytes | bytearray | str) -> Any:
    """Parse JSON; raises MalformedRequest where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise MalformedRequest("JSON nested too deeply") from None
    except ValueError as error:
        raise MalformedRequest(f"not valid JSON: {error}") from None


def decode_base64(text: str) -> bytes:
    """Decode base64, with or without line breaks, or a ``data:`` URL; raises MalformedRequest where it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise MalformedRequest(f"not valid base64: {error}") from None


def unwrapped(value: Any) -> Any:
    """Take a value out of objects that hold nothing else: ``{"data": x}``, ``{"body": x}``, ``{"b64": text}``.

    ``{"image": {"b64": text}}``, with any name, is taken out as well: that is how KServe v1 sends bytes.
    """
    while isinstance(value, Mapping) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if key == "b64":
            if not isinstance(inner, str):
                raise MalformedRequest(f"b64 holds {_kind(inner)}, not text")
            return decode_base64(inner)
        if key not in PAYLOAD_KEYS and not (isinstance(inner, Mapping) and inner.keys() == {"b64"}):
            break
        value = inner
    return value


def _open_part(part: Request) -> Envelope:
    value = _parsed(part)
    if isinstance(value, Mapping):
        if "instances" in value:
            return Envelope("v1", _each(part, value["instances"], "instances"))
        if _looks_like_v2(value):
            return Envelope("v2", _v2_requests(part, value["inputs"]), v2_id=_text_or_none(value.get("id")))
    value = unwrapped(value)
    # A list of numbers, or of lists, is one tensor; a list of texts or objects is several requests.
    if isinstance(value, list) and (not value or all(isinstance(item, str | Mapping) for item in value)):
        return Envelope("many", _each(part, value, "the list"))
    return Envelope("one", (_replace(part, value),))


def _open_binary(part: Request, body: bytes | bytearray, length: str) -> Envelope:
    """Open a KServe v2 request whose tensors, or some of them, stand behind the JSON as bytes, in their order."""
    end = int(length) if length.isdecimal() and len(length) < 16 else 0
    if not 0 < end <= len(body):
        raise MalformedRequest(f"{V2_JSON_LENGTH} is {length!r}, and the body has {len(body)} bytes")
    value = parse_json(body[:end])
    if not isinstance(value, Mapping) or not _looks_like_v2(value):
        raise MalformedRequest(f"a request with {V2_JSON_LENGTH} must have inputs, each with a datatype")
    requests: list[Request] = []
    for one in value["inputs"]:
        parameters = one.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
        if size is None:
            requests += _v2_input(part, one)
            continue
        if type(size) is not int or not 0 < size <= len(body) - end:
            raise MalformedRequest(f"binary_data_size is {size!r}, and {len(body) - end} bytes are left")
        requests += _v2_binary_input(part, one, bytes(body[end : end + size]))
        end += size
    if end != len(body) or not requests:
        raise MalformedRequest(f"{len(body) - end} bytes stand behind the inputs" if requests else "inputs is empty")
    return Envelope("v2", tuple(requests), v2_id=_text_or_none(value.get("id")))


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
        raise MalformedRequest(f"{where} holds {_kind(values)}, not a list")
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


def _looks_like_v2(value: Mapping[str, Any]) -> bool:
    inputs = value.get("inputs")
    return isinstance(inputs, list) and all(isinstance(one, Mapping) and "datatype" in one for one in inputs)


def _v2_requests(part: Request, inputs: list[Mapping[str, Any]]) -> tuple[Request, ...]:
    if not inputs:
        raise MalformedRequest("inputs is empty")
    return tuple(request for one in inputs for request in _v2_input(part, one))


def _v2_input(part: Request, one: Mapping[str, Any]) -> list[Request]:
    """A tensor of bytes holds one request an element; a tensor of numbers is one request."""
    name, data = str(one.get("name", "input")), one.get("data")
    if not isinstance(data, list) or not data:
        raise MalformedRequest(f"input {name!r}: data is not a list with anything in it")
    if one["datatype"] == "BYTES":
        return _v2_elements(part, name, [unwrapped(value) for value in data])
    dtype = _v2_dtype(name, one["datatype"])
    try:
        tensor = np.array(data, dtype=dtype).reshape(one.get("shape", -1))
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedRequest(f"input {name!r}: {error}") from None
    return [Request(tensor, "", part.headers, name)]


def _v2_binary_input(part: Request, one: Mapping[str, Any], raw: bytes) -> list[Request]:
    """As ``_v2_input``, of bytes: numbers with the lowest byte first, elements of BYTES each behind its length."""
    name = str(one.get("name", "input"))
    if one["datatype"] == "BYTES":
        return _v2_elements(part, name, _elements(name, raw))
    dtype = np.dtype(_v2_dtype(name, one["datatype"])).newbyteorder("<")
    try:
        # A copy: what came over the wire cannot be written to, and torch wants it to be.
        tensor = np.frombuffer(raw, dtype).reshape(one.get("shape", -1)).astype(dtype.newbyteorder("="))
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedRequest(f"input {name!r}: {error}") from None
    return [Request(tensor, "", part.headers, name)]


def _elements(name: str, raw: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or at > len(raw):
            raise MalformedRequest(f"input {name!r}: an element is longer than its tensor")
        found.append(raw[start:at])
    return found


def _v2_elements(part: Request, name: str, values: list[Any]) -> list[Request]:
    names = [name] if len(values) == 1 else [f"{name}-{i}" for i in range(len(values))]
    return [Request(value, "", part.headers, own_name) for own_name, value in zip(names, values, strict=True)]


def _v2_dtype(name: str, datatype: Any) -> str:
    dtype = V2_DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise UnknownType(f"input {name!r}: no datatype {datatype!r} in KServe v2")
    return dtype


def _v2_output(name: str, reply: Any) -> dict[str, Any]:
    datatype, shape = _v2_type(reply)
    flat = np.array(reply).reshape(-1).tolist() if datatype != "BYTES" else [reply]
    return {"name": name, "datatype": datatype, "shape": shape, "data": flat}


def _v2_type(reply: Any) -> tuple[str, list[int]]:
    """Name the KServe v2 datatype and shape of a reply; what is no tensor of numbers is one element of BYTES."""
    try:
        array = np.array(reply)
    except ValueError:
        return "BYTES", [1]
    names = {"b": "BOOL", "i": "INT64", "u": "UINT64", "f": "FP64"}
    if array.size == 0 or array.dtype.kind not in names:
        return "BYTES", [1]
    return names[array.dtype.kind], list(array.shape) or [1]


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
