"""Exact conversion of numbers to tensors: each number arrives unchanged, or the request is refused.

- A dtype of whole numbers takes those in its range. ``1.0`` and ``1e3`` are whole too, below 2**53: above that, a
  number with a point may have been rounded before.
- A dtype of floats rounds decimals. It takes a whole number only if it can represent it exactly, and no number becomes
  infinite.
- ``bool`` takes ``true``, ``false``, 0 and 1. In JSON no other dtype takes ``true`` and ``false``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from marsmith_handler.errors import BadRequest, UnprocessableContent

_ALL_WHOLE = 2**53  # float64 represents every whole number up to here

Array = np.ndarray[Any, Any]


def numbers_of(value: Any, name: str) -> Array:
    """Return the numbers of a JSON value as int64, uint64 or float64.

    If none of these can represent them all (very large whole numbers, whole numbers beside decimals, ``true`` and
    ``false``), they stay Python's own, in an array of objects.

    Args:
        value: a number, or lists of numbers that are equally long.
        name: name of the value in error messages.

    Raises:
        ItemError: 400 not numbers; 422 a number that is infinite, or too large for any float.
    """
    try:
        array = np.array(value, dtype=object)
    except ValueError:
        array = np.array(None)
    kinds = set(map(type, array.flat))
    if not kinds <= {int, float, bool}:
        raise BadRequest(f"{name} is not numbers, or lists of numbers that are equally long")
    if kinds == {int}:
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= array.min() and array.max() <= np.iinfo(dtype).max:
                return array.astype(dtype)
    try:
        decimals = array.astype(np.float64)
    except OverflowError:
        decimals = np.array(np.inf)
    if np.isinf(decimals).any():
        raise UnprocessableContent(f"{name} holds an infinite number, or one that is too large for any float")
    return array if kinds & {int, bool} else decimals


def exact_tensor(array: Array, dtype: torch.dtype, name: str) -> torch.Tensor:
    """Return the numbers as a tensor of ``dtype``; see the module.

    Args:
        array: of numbers, or from ``numbers_of``.
        dtype: dtype of the model's input: bool, whole numbers or floats.
        name: name of the value in error messages.

    Raises:
        ItemError: 422 the dtype cannot represent them.
    """
    if dtype == torch.bool:
        tensor = _as_bool(array)
    elif array.dtype.kind == "O" and bool in set(map(type, array.flat)):
        raise UnprocessableContent(f"{name} holds true or false, and the model takes numbers")
    elif dtype.is_floating_point:
        tensor = _as_floats(array, dtype)
    else:
        tensor = _as_whole(array, dtype, name)
    if tensor is None:
        raise UnprocessableContent(f"{name} holds numbers that {dtype} cannot hold")
    return tensor


def _as_bool(array: Array) -> torch.Tensor | None:
    return torch.from_numpy(array.astype(bool)) if ((array == 0) | (array == 1)).all() else None


def _as_whole(array: Array, dtype: torch.dtype, name: str) -> torch.Tensor | None:
    whole = array if array.dtype.kind in "biu" else _without_points(array)
    if whole is None:
        raise UnprocessableContent(
            f"{name} holds numbers that are not whole, or not surely so; the model takes {dtype}"
        )
    limits = torch.iinfo(dtype)
    if whole.size and not limits.min <= int(whole.min()) <= int(whole.max()) <= limits.max:
        return None
    return torch.from_numpy(whole.astype(str(dtype).removeprefix("torch.")))


def _without_points(array: Array) -> Array | None:
    """Return decimals, or Python's numbers, as whole ones; None if they are not, or were rounded to be."""
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (np.abs(array) < _ALL_WHOLE) & (np.trunc(array) == array)
        return array.astype(np.int64) if whole.all() else None
    numbers = array.ravel().tolist()
    if not all(isinstance(one, int) or (one.is_integer() and abs(one) < _ALL_WHOLE) for one in numbers):
        return None
    return np.array([int(one) for one in numbers], dtype=object).reshape(array.shape)


def _as_floats(array: Array, dtype: torch.dtype) -> torch.Tensor | None:
    if array.dtype.kind in "bf":
        tensor = torch.from_numpy(array).to(dtype)
        return tensor if array.dtype.kind == "b" or np.array_equal(tensor.isinf().numpy(), np.isinf(array)) else None
    wide = array.astype(np.float64)
    tensor = torch.from_numpy(wide).to(dtype)
    back = tensor.to(torch.float64).numpy()
    if array.dtype.kind in "iu" and (not array.size or np.abs(wide).max() < _ALL_WHOLE):
        return tensor if np.array_equal(back, wide) else None
    # Python's own numbers are compared exactly; numpy would round one to the dtype of the other.
    pairs = zip(array.ravel().tolist(), back.ravel().tolist(), strict=True)
    return tensor if all(not np.isinf(got) and (type(sent) is float or sent == got) for sent, got in pairs) else None
