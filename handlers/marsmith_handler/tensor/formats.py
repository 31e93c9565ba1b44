"""Tensors as bytes: ``.npy`` and safetensors, with all claims of the header checked."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np

from marsmith_handler.bounded_json import parse_json
from marsmith_handler.errors import BadRequest, ContentTooLarge, UnsupportedMediaType

NPY_TYPE = "application/x-npy"
SAFETENSORS_TYPE = "application/x-safetensors"
NPY_MAGIC = b"\x93NUMPY"
SAFETENSORS_DTYPES = {
    "BOOL": "?",
    **{f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}
DTYPE_NAMES = {np.dtype(code): name for name, code in SAFETENSORS_DTYPES.items()}


# Tensors in one file: each costs time and memory, even a small one.
MAX_TENSORS = 1000
MAX_AXES = 32


def array_of(raw: bytes | memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the numbers in bytes as an array with its own memory, in the machine's byte order.

    Raises:
        ValueError: they do not fit the shape, or a truth value is neither 0 nor 1.
    """
    if dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    # A copy: the received bytes are read-only, and torch needs writable memory.
    return np.frombuffer(raw, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def read_npy(body: bytes | bytearray) -> np.ndarray[Any, Any]:
    """Read one array of numbers from ``.npy``, any version; it has its own memory.

    Raises:
        ItemError: 400 it is damaged, or shorter than its header claims; 415 it does not contain plain numbers.
    """
    stream = BytesIO(body)
    try:
        major = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[major]
        shape, fortran_order, dtype = read_header(stream)
    except Exception as error:
        # The header is parsed as Python source; numpy passes on any exception of the parser.
        raise BadRequest(f"not a .npy file: {type(error).__name__}") from None
    if dtype.kind not in "biuf":
        raise UnsupportedMediaType(f"the .npy file holds {dtype}, not numbers")
    if any(count < 0 for count in shape) or math.prod(shape) * dtype.itemsize != len(body) - stream.tell():
        raise BadRequest(f"the .npy file says {shape} of {dtype} and has {len(body) - stream.tell()} bytes")
    try:
        flat = array_of(memoryview(body)[stream.tell() :], dtype, (-1,))
    except ValueError as error:
        raise BadRequest(f"the .npy file: {error}") from None
    return flat.reshape(shape, order="F" if fortran_order else "C")


def write_npy(array: np.ndarray[Any, Any]) -> bytes:
    """Write one array as ``.npy``."""
    stream = BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def read_safetensors(body: bytes | bytearray) -> dict[str, np.ndarray[Any, Any]]:
    """Read named arrays from safetensors.

    Raises:
        ItemError: 400 it is damaged; 415 it has a dtype that numpy lacks.
    """
    try:
        (length,) = struct.unpack_from("<Q", body)
        header = parse_json(body[8 : 8 + length])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return _read_entries(memoryview(body)[8 + length :], entries)
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, struct.error) as error:
        raise BadRequest(f"not a safetensors file: {error}") from None


def write_safetensors(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Write named arrays as safetensors."""
    header, chunks, offset = {}, [], 0
    for name, array in arrays.items():
        chunk = np.ascontiguousarray(array).tobytes()
        span = [offset, offset + len(chunk)]
        header[name] = {"dtype": DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        chunks.append(chunk)
        offset += len(chunk)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *chunks])


def _read_entries(data: memoryview, entries: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    if len(entries) > MAX_TENSORS:
        raise ContentTooLarge(f"{len(entries)} tensors in a safetensors file, at most {MAX_TENSORS} are read")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    room = len(data)
    for name, entry in entries.items():
        arrays[name] = _read_entry(data, entry)
        room -= arrays[name].nbytes
        # Each has its own memory: tensors that share bytes could fill the machine's memory.
        if room < 0:
            raise ValueError("tensors share bytes")
    return arrays


def _read_entry(data: memoryview, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    code = SAFETENSORS_DTYPES.get(str(entry["dtype"])[:20])
    if code is None:
        raise UnsupportedMediaType(f"no dtype {str(entry['dtype'])[:20]!r}")
    start, end = entry["data_offsets"]
    dtype, shape = np.dtype(code), tuple(entry["shape"])
    if len(shape) > MAX_AXES:
        raise ValueError(f"{len(shape)} axes")
    if not 0 <= start <= end <= len(data) or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{shape} of {entry['dtype']} do not lie at bytes {start} to {end}")
    return array_of(data[start:end], dtype, shape)
