"""Inputs of a module by name, and their values in a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from marsmith_handler.errors import UnprocessableContent
from marsmith_handler.exact_numbers import exact_tensor, numbers_of


@dataclass(frozen=True)
class TensorInput:
    """One input of a module, for one row of a batch.

    Attributes:
        name: name of the input.
        dtype: dtype that the module takes.
        shape: shape without the batch axis; None: any length.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> TensorInput:
        """Read an entry of ``inputs`` in the settings.

        Raises:
            RuntimeError: torch has no such dtype.
        """
        return cls(str(entry["name"]), dtype_named(entry["dtype"], "inputs"), tuple(entry["shape"]))

    def read(self, value: Any) -> torch.Tensor:
        """Convert the value of a request under this name to the tensor that the module takes.

        Raises:
            ItemError: 400 not numbers; 422 another shape, or numbers that the dtype cannot represent.
        """
        array = value if isinstance(value, np.ndarray) else numbers_of(value, repr(self.name))
        if len(array.shape) != len(self.shape) or any(
            want not in (None, got) for want, got in zip(self.shape, array.shape, strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise UnprocessableContent(f"{self.name!r} has the shape {list(array.shape)}; the model takes [{wanted}]")
        return exact_tensor(array, self.dtype, repr(self.name))

    def zeros(self) -> torch.Tensor:
        """Return a row for warming up; axes of any length have 8 elements."""
        return torch.zeros([8 if size is None else size for size in self.shape], dtype=self.dtype)


def dtype_named(name: Any, key: str) -> torch.dtype:
    """Return torch's dtype of a name; raises RuntimeError, which names the key of the settings, if there is none."""
    dtype = getattr(torch, str(name), None)
    if isinstance(dtype, torch.dtype) and not dtype.is_complex:
        return dtype
    raise RuntimeError(f"model-config.yaml, block handler: {key} {name!r} is no dtype of torch for real numbers")


def read_row(inputs: Sequence[TensorInput], given: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Return one tensor for each input, in the order of ``inputs``.

    Raises:
        ItemError: 400 or 422, naming the input.
    """
    names = [one.name for one in inputs]
    missing = [name for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    if missing or unknown:
        words = [f"no {name!r}" for name in missing] + [f"{name!r} is no input of the model" for name in unknown[:4]]
        raise UnprocessableContent(f"the model takes {', '.join(names)}: {'; '.join(words)}")
    return tuple(one.read(given[one.name]) for one in inputs)


def group_key(row: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """Return the properties that must be equal for two rows to be stacked."""
    return tuple((tensor.dtype, tensor.shape) for tensor in row)


def flattened(value: Any) -> list[torch.Tensor]:
    """Return the tensors in what a TorchScript module returned, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    return [tensor for part in parts for tensor in flattened(part)]
