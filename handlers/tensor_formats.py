"""Tensors as bytes: ``.npy`` and safetensors, read without trusting what the header claims."""

from __future__ import annotations

import json
import math
import struct
from io import BytesIO
from typing import Any

import numpy as np

from item_errors import MalformedRequest, UnknownType

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


def read_npy(body: bytes | bytearray) -> np.ndarray[Any, Any]:
    """Read one array of numbers from ``.npy``, any version; its memory is its own.

    Raises:
        ItemError: 400 it is damaged, or its header claims more than there is; 415 it holds no plain numbers.
    """
    stream = BytesIO(body)
    try:
        major = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[major]
        shape, fortran_order, dtype = read_header(stream)
    except Exception as error:
        # The header is parsed as Python source; numpy lets through whatever its parser raises.
        raise MalformedRequest(f"not a .npy file: {type(error).__name__}") from None
    if dtype.kind not in "biuf":
        raise UnknownType(f"the .npy file holds {dtype}, not numbers")
    if any(count < 0 for count in shape) or math.prod(shape) * dtype.itemsize != len(body) - stream.tell():
        raise MalformedRequest(f"the .npy file says {shape} of {dtype} and has {len(body) - stream.tell()} bytes")
    flat = np.frombuffer(body, dtype=dtype, offset=stream.tell()).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if fortran_order else "C")


def write_npy(array: np.ndarray[Any, Any]) -> bytes:
    """Write one array as ``.npy``."""
    stream = BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def read_safetensors(body: bytes | bytearray) -> dict[str, np.ndarray[Any, Any]]:
    """Read named arrays from safetensors.

    Raises:
        ItemError: 400 it is damaged; 415 it holds a dtype that numpy does not have.
    """
    try:
        (length,) = struct.unpack_from("<Q", body)
        header = json.loads(bytes(body[8 : 8 + length]))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _read_entry(body[8 + length :], entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, struct.error) as error:
        raise MalformedRequest(f"not a safetensors file: {error}") from None


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


def _read_entry(data: bytes | bytearray, entry: dict[str, Any]) -> np.ndarray[Any, Any]:
    code = SAFETENSORS_DTYPES.get(entry["dtype"])
    if code is None:
        raise UnknownType(f"no dtype {entry['dtype']!r}")
    start, end = entry["data_offsets"]
    dtype, shape = np.dtype(code), tuple(entry["shape"])
    if not 0 <= start <= end <= len(data) or math.prod(shape) * dtype.itemsize != end - start:
        raise ValueError(f"{shape} of {entry['dtype']} do not lie at bytes {start} to {end}")
    return np.frombuffer(bytes(data[start:end]), dtype=dtype).reshape(shape).copy()
