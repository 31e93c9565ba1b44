"""KServe's protocol, version 2: tensors in JSON, or behind it as bytes, to requests; replies to tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from marsmith_handler.bounded_json import parse_json
from marsmith_handler.errors import BadRequest, ContentTooLarge, UnsupportedMediaType
from marsmith_handler.marks import Marks, take_marked_id
from marsmith_handler.request import Request, check_count, kind, unwrapped
from marsmith_handler.tensor.formats import MAX_AXES, array_of

# Length of the JSON, if the tensors follow it as bytes.
V2_JSON_LENGTH = "inference-header-content-length"
V2_DTYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"float{bits}" for bits in (16, 32, 64)},
}
# Of an id or a name, in characters: both come back in the reply, a name once for each element of its tensor.
LONGEST_NAME = 256


def looks_like_v2(value: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a request of this protocol."""
    inputs = value.get("inputs")
    return isinstance(inputs, list) and all(isinstance(one, Mapping) and "datatype" in one for one in inputs)


def id_of(value: Mapping[str, Any]) -> tuple[str | None, Marks | None]:
    """Return the sender's id of the request, and the marks that it carries; None for none; raises BadRequest."""
    given = value.get("id")
    own, marks = take_marked_id(given) if isinstance(given, str) else ("", None)
    return _name("id", own) if own.strip() else None, marks


def requests_of(part: Request, inputs: list[Mapping[str, Any]], max_items: int) -> tuple[Request, ...]:
    """Return the requests in the inputs of a JSON object, with the headers of ``part``.

    Raises:
        ItemError: 400 no inputs, or data that does not fit its shape; 413 more than ``max_items`` requests; 415 an
            unknown datatype; 422 numbers that the datatype cannot represent.
    """
    if not inputs:
        raise BadRequest("inputs is empty")
    check_count(len(inputs), max_items)
    found: list[Request] = []
    for one in inputs:
        found += _input(part, one, max_items - len(found))
    return tuple(found)


def split_binary(
    part: Request, body: bytes | bytearray, length: str, max_items: int
) -> tuple[Mapping[str, Any], tuple[Request, ...]]:
    """Split a request whose tensors, or some of them, follow the JSON as bytes, in their order.

    Args:
        part: its headers become those of the requests.
        body: JSON of ``length`` bytes, and the tensors.
        length: the header ``inference-header-content-length``.
        max_items: most requests in it.

    Returns:
        The JSON, and the requests for the model.

    Raises:
        ItemError: 400 lengths do not add up; else as ``requests_of``.
    """
    end = int(length) if length.isdecimal() and len(length) < 16 else 0
    if not 0 < end <= len(body):
        raise BadRequest(f"{V2_JSON_LENGTH} is {length!r}, and the body has {len(body)} bytes")
    value = parse_json(body[:end])
    if not isinstance(value, Mapping) or not looks_like_v2(value):
        raise BadRequest(f"a request with {V2_JSON_LENGTH} must have inputs, each with a datatype")
    check_count(len(value["inputs"]), max_items)
    requests: list[Request] = []
    for one in value["inputs"]:
        room = max_items - len(requests)
        size = _binary_size(one, len(body) - end)
        if size is None:
            requests += _input(part, one, room)
        else:
            requests += _binary_input(part, one, memoryview(body)[end : end + size], room)
            end += size
    if end != len(body) or not requests:
        raise BadRequest(f"{len(body) - end} bytes stand behind the inputs" if requests else "inputs is empty")
    return value, tuple(requests)


def output_of(name: str, reply: Any) -> dict[str, Any]:
    """Return a reply as an output tensor; anything but a tensor of numbers is one element of BYTES."""
    datatype, shape = _datatype(reply)
    flat = np.array(reply).reshape(-1).tolist() if datatype != "BYTES" else [reply]
    return {"name": name, "datatype": datatype, "shape": shape, "data": flat}


def _binary_size(one: Mapping[str, Any], left: int) -> int | None:
    """Return how many of the remaining bytes belong to an input; None if its data is in the JSON."""
    parameters = one.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    if size is None:
        return None
    if type(size) is not int or not 0 < size <= left:
        told = size if type(size) is int else kind(size)
        raise BadRequest(f"binary_data_size is {told}, and {left} bytes are left")
    return size


def _input(part: Request, one: Mapping[str, Any], room: int) -> list[Request]:
    """Return the requests of an input: one for each element of a tensor of bytes, one for a tensor of numbers."""
    import torch

    from marsmith_handler.exact_numbers import exact_tensor, numbers_of

    name, data = _name("the name of an input", one.get("name", "input")), one.get("data")
    if not isinstance(data, list) or not data:
        raise BadRequest(f"input {name!r}: data is not a list with anything in it")
    if one["datatype"] == "BYTES":
        return _each_element(part, name, data, room)
    dtype = getattr(torch, _dtype(name, one["datatype"]))
    array = exact_tensor(numbers_of(data, f"input {name!r}"), dtype, f"input {name!r}").numpy()
    try:
        return [Request(array.reshape(_shape(name, one)), "", part.headers, name)]
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"input {name!r}: {error}") from None


def _binary_input(part: Request, one: Mapping[str, Any], raw: memoryview, room: int) -> list[Request]:
    """As ``_input``, from bytes: numbers with the lowest byte first, elements of BYTES each behind its length."""
    name = _name("the name of an input", one.get("name", "input"))
    if one["datatype"] == "BYTES":
        return _each_element(part, name, _elements(name, raw, room), room)
    dtype = np.dtype(_dtype(name, one["datatype"])).newbyteorder("<")
    try:
        return [Request(array_of(raw, dtype, _shape(name, one)), "", part.headers, name)]
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"input {name!r}: {error}") from None


def _elements(name: str, raw: memoryview, room: int) -> list[bytes]:
    """Return the elements, at most one more than allowed."""
    found: list[bytes] = []
    at = 0
    while at < len(raw) and len(found) <= room:
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or at > len(raw):
            raise BadRequest(f"input {name!r}: an element is longer than its tensor")
        found.append(bytes(raw[start:at]))
    return found


def _each_element(part: Request, name: str, values: list[Any], room: int) -> list[Request]:
    if len(values) > room:
        raise ContentTooLarge(f"input {name!r}: more elements than max_items leaves room for")
    names = [name] if len(values) == 1 else [f"{name}-{i}" for i in range(len(values))]
    return [Request(unwrapped(value), "", part.headers, own) for own, value in zip(names, values, strict=True)]


def _name(what: str, given: Any) -> str:
    if not isinstance(given, str) or len(given) > LONGEST_NAME:
        told = f"text of {len(given)} characters" if isinstance(given, str) else kind(given)
        raise BadRequest(f"{what} is {told}, not text of at most {LONGEST_NAME} characters")
    return given


def _shape(name: str, one: Mapping[str, Any]) -> tuple[int, ...]:
    shape = one.get("shape", [-1])
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(type(size) is int for size in shape):
        raise BadRequest(f"input {name!r}: shape is not a list of at most {MAX_AXES} whole numbers")
    return tuple(shape)


def _dtype(name: str, datatype: Any) -> str:
    dtype = V2_DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        told = repr(datatype[:20]) if isinstance(datatype, str) else kind(datatype)
        raise UnsupportedMediaType(f"input {name!r}: no datatype {told} in KServe v2")
    return dtype


def _datatype(reply: Any) -> tuple[str, list[int]]:
    """Return the KServe v2 datatype and shape of a reply; anything but a tensor of numbers is one element of BYTES."""
    try:
        array = np.array(reply)
    except ValueError:
        return "BYTES", [1]
    names = {"b": "BOOL", "i": "INT64", "u": "UINT64", "f": "FP64"}
    if array.size == 0 or array.dtype.kind not in names:
        return "BYTES", [1]
    return names[array.dtype.kind], list(array.shape) or [1]
