"""KServe's protocol, version 2: tensors in JSON, or behind it as bytes, to requests; replies to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from item_errors import MalformedRequest, UnknownType
from model_request import Request, parse_json, unwrapped

# How long the JSON is, where the tensors stand behind it as bytes.
V2_JSON_LENGTH = "inference-header-content-length"
V2_DTYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}


def looks_like_v2(value: Mapping[str, Any]) -> bool:
    """Tell whether a JSON object is a request of this protocol."""
    inputs = value.get("inputs")
    return isinstance(inputs, list) and all(isinstance(one, Mapping) and "datatype" in one for one in inputs)


def requests_of(part: Request, inputs: list[Mapping[str, Any]]) -> tuple[Request, ...]:
    """Return the requests that the inputs of a JSON object hold, with the headers of ``part``.

    Raises:
        ItemError: 400 no inputs, or data that does not fit its shape or datatype; 415 a datatype that is none.
    """
    if not inputs:
        raise MalformedRequest("inputs is empty")
    return tuple(request for one in inputs for request in _input(part, one))


def split_binary(part: Request, body: bytes | bytearray, length: str) -> tuple[Mapping[str, Any], tuple[Request, ...]]:
    """Take apart a request whose tensors, or some of them, stand behind the JSON as bytes, in their order.

    Args:
        part: whose headers the requests get.
        body: JSON of ``length`` bytes, and the tensors.
        length: the header ``inference-header-content-length``.

    Returns:
        The JSON, and the requests for the model.

    Raises:
        ItemError: 400 lengths do not add up; 415 a datatype that is none.
    """
    end = int(length) if length.isdecimal() and len(length) < 16 else 0
    if not 0 < end <= len(body):
        raise MalformedRequest(f"{V2_JSON_LENGTH} is {length!r}, and the body has {len(body)} bytes")
    value = parse_json(body[:end])
    if not isinstance(value, Mapping) or not looks_like_v2(value):
        raise MalformedRequest(f"a request with {V2_JSON_LENGTH} must have inputs, each with a datatype")
    requests: list[Request] = []
    for one in value["inputs"]:
        parameters = one.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
        if size is None:
            requests += _input(part, one)
            continue
        if type(size) is not int or not 0 < size <= len(body) - end:
            raise MalformedRequest(f"binary_data_size is {size!r}, and {len(body) - end} bytes are left")
        requests += _binary_input(part, one, bytes(body[end : end + size]))
        end += size
    if end != len(body) or not requests:
        raise MalformedRequest(f"{len(body) - end} bytes stand behind the inputs" if requests else "inputs is empty")
    return value, tuple(requests)


def output_of(name: str, reply: Any) -> dict[str, Any]:
    """Return a reply as an output tensor; what is no tensor of numbers is one element of BYTES."""
    datatype, shape = _datatype(reply)
    flat = np.array(reply).reshape(-1).tolist() if datatype != "BYTES" else [reply]
    return {"name": name, "datatype": datatype, "shape": shape, "data": flat}


def _input(part: Request, one: Mapping[str, Any]) -> list[Request]:
    """A tensor of bytes holds one request an element; a tensor of numbers is one request."""
    name, data = str(one.get("name", "input")), one.get("data")
    if not isinstance(data, list) or not data:
        raise MalformedRequest(f"input {name!r}: data is not a list with anything in it")
    if one["datatype"] == "BYTES":
        return _each_element(part, name, [unwrapped(value) for value in data])
    dtype = _dtype(name, one["datatype"])
    try:
        tensor = np.array(data, dtype=dtype).reshape(one.get("shape", -1))
    except (ValueError, TypeError, OverflowError) as error:
        raise MalformedRequest(f"input {name!r}: {error}") from None
    return [Request(tensor, "", part.headers, name)]


def _binary_input(part: Request, one: Mapping[str, Any], raw: bytes) -> list[Request]:
    """As ``_input``, of bytes: numbers with the lowest byte first, elements of BYTES each behind its length."""
    name = str(one.get("name", "input"))
    if one["datatype"] == "BYTES":
        return _each_element(part, name, _elements(name, raw))
    dtype = np.dtype(_dtype(name, one["datatype"])).newbyteorder("<")
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


def _each_element(part: Request, name: str, values: list[Any]) -> list[Request]:
    names = [name] if len(values) == 1 else [f"{name}-{i}" for i in range(len(values))]
    return [Request(value, "", part.headers, own_name) for own_name, value in zip(names, values, strict=True)]


def _dtype(name: str, datatype: Any) -> str:
    dtype = V2_DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise UnknownType(f"input {name!r}: no datatype {datatype!r} in KServe v2")
    return dtype


def _datatype(reply: Any) -> tuple[str, list[int]]:
    """Name the KServe v2 datatype and shape of a reply; what is no tensor of numbers is one element of BYTES."""
    try:
        array = np.array(reply)
    except ValueError:
        return "BYTES", [1]
    names = {"b": "BOOL", "i": "INT64", "u": "UINT64", "f": "FP64"}
    if array.size == 0 or array.dtype.kind not in names:
        return "BYTES", [1]
    return names[array.dtype.kind], list(array.shape) or [1]
