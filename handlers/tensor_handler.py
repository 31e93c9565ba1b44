"""Tensors in, tensors out: for any TorchScript module that takes one or several tensors with the batch on axis 0.

A request is one row of the batch. For a module with one input it is a JSON list (or ``{"data": [...]}``), a ``.npy``
file, or a safetensors file with one tensor. For a module with several inputs it is a JSON object of lists, or a
safetensors file, with the names of the inputs. The reply has the format of the request, or the one that the ``accept``
header names: JSON, ``.npy`` or safetensors. Several outputs have their names.

Settings, in the block ``handler`` of model-config.yaml: ``inputs`` (a list of ``name``, ``dtype`` and ``shape`` of one
row, null for an axis of any length, in the order of the module's arguments) and ``outputs`` (names). The export of a
tensor recipe writes both. Without ``inputs`` there is one input, with ``input_dtype`` (such as ``float32``; default:
float32 for JSON, else the file's dtype) and ``input_shape`` (of one row; other shapes get 422). Numbers arrive
unchanged, or the request gets 422: see ``exact_numbers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from marsmith_handler import devices, watched
from marsmith_handler.base import BaseHandler
from marsmith_handler.errors import UnprocessableContent
from marsmith_handler.exact_numbers import exact_tensor, numbers_of
from marsmith_handler.replies import JSON_TYPE, Reply
from marsmith_handler.request import Request
from marsmith_handler.tensor.formats import (
    NPY_MAGIC,
    NPY_TYPE,
    SAFETENSORS_TYPE,
    read_npy,
    read_safetensors,
    write_npy,
    write_safetensors,
)
from marsmith_handler.tensor.signature import TensorInput, dtype_named, flattened, group_key, read_row

# What a sender may write for the same two formats.
TYPES = {NPY_TYPE: NPY_TYPE, "application/npy": NPY_TYPE, SAFETENSORS_TYPE: SAFETENSORS_TYPE}
TYPES["application/safetensors"] = SAFETENSORS_TYPE


class TensorHandler(BaseHandler):
    """Runs a TorchScript module on rows of numbers."""

    def load(self) -> None:
        """Load the model and the settings."""
        super().load()
        name = self.config.get("input_dtype")
        self.dtype = dtype_named(name, "input_dtype") if name else None
        shape = self.config.get("input_shape")
        self.shape = tuple(shape) if shape is not None else None
        self.inputs = [TensorInput.of(entry) for entry in self.config.get("inputs") or ()]
        self.outputs = [str(name) for name in self.config.get("outputs") or ()]

    def warm_up_item(self) -> tuple[torch.Tensor, ...] | None:
        """Return zeros if the settings give the length of every axis; else None."""
        if self.inputs:
            known = all(None not in one.shape for one in self.inputs)
            return tuple(one.zeros() for one in self.inputs) if known else None
        return None if self.shape is None else (torch.zeros(self.shape, dtype=self.dtype or torch.float32),)

    def decode(self, request: Request) -> tuple[torch.Tensor, ...]:
        """Read one tensor an input, without a batch axis."""
        if self.inputs:
            return read_row(self.inputs, self._by_name(request))
        array = _array(request)
        if self.shape is not None and array.shape != self.shape:
            raise UnprocessableContent(f"a tensor of shape {list(array.shape)}; the model takes {list(self.shape)}")
        dtype = torch.float32 if self.dtype is None and _is_json(request) else self.dtype
        return (torch.as_tensor(array) if dtype is None else exact_tensor(array, dtype, "the tensor"),)

    def infer(self, items: list[tuple[torch.Tensor, ...]]) -> list[list[torch.Tensor]]:
        """Run the module on the rows, batched by shapes and dtypes; return one row of each output."""
        groups: dict[Any, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(group_key(item), []).append(index)
        results: list[list[torch.Tensor]] = [[] for _ in items]
        for indices in groups.values():
            columns = zip(*(items[index] for index in indices), strict=True)
            outputs = self.model(*(devices.stack_on(list(column), self.device) for column in columns))
            for output in flattened(outputs):
                for index, row in zip(indices, output.cpu(), strict=True):
                    results[index].append(row)
        return results

    def encode(self, result: list[torch.Tensor], request: Request) -> Any:
        """Return the row as nested lists, or as a file of the format that the request came in or asks for."""
        accepted = request.headers.get("accept", "").partition(";")[0].strip().lower()
        wanted = accepted if accepted in (*TYPES, JSON_TYPE) else _format_of(request)
        names = self.outputs or (["output"] if len(result) == 1 else [f"output_{i}" for i in range(len(result))])
        if wanted == JSON_TYPE:
            lists = {name: tensor.tolist() for name, tensor in zip(names, result, strict=True)}
            return lists if len(result) > 1 else lists[names[0]]
        arrays = {name: _as_numpy(tensor) for name, tensor in zip(names, result, strict=True)}
        # A .npy file holds one tensor.
        if TYPES[wanted] == NPY_TYPE and len(result) == 1:
            return Reply(write_npy(arrays[names[0]]), NPY_TYPE)
        return Reply(write_safetensors(arrays), SAFETENSORS_TYPE)

    def watch(self, request: Request, item: tuple[torch.Tensor, ...], reply: Any) -> Mapping[str, float | str]:  # noqa: ARG002
        """Describe the input by ``mean``, ``std`` and ``missing``; one of several by ``NAME.mean`` and so on."""
        prefixes = [f"{one.name}." for one in self.inputs] if len(item) > 1 else [""]
        found: dict[str, float | str] = watched.of_classes(reply)
        for tensor, prefix in zip(item, prefixes, strict=True):
            found |= watched.of_numbers(_as_numpy(tensor.cpu()), prefix)
        return found

    def _by_name(self, request: Request) -> Mapping[str, Any]:
        """Return the value of each input by name; a single tensor is the value of the only input."""
        body = request.body
        if isinstance(body, Mapping) and not (len(self.inputs) == 1 and self.inputs[0].name not in body):
            return body
        if isinstance(request.payload, bytes | bytearray | str) and _format_of_bytes(request) == SAFETENSORS_TYPE:
            arrays = read_safetensors(request.as_bytes())
            alone = len(arrays) == len(self.inputs) == 1
            return {self.inputs[0].name: _only(arrays)} if alone else arrays
        if len(self.inputs) > 1:
            wanted = ", ".join(one.name for one in self.inputs)
            raise UnprocessableContent(
                f"one tensor; the model takes {wanted}: send an object or a safetensors file with these names"
            )
        return {self.inputs[0].name: _array(request)}


def _as_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    # numpy has no bfloat16 and no float8; float32 represents all their numbers.
    known = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if known else tensor.to(torch.float32)).contiguous().numpy()


def _format_of_bytes(request: Request) -> str:
    if isinstance(request.payload, str):
        return NPY_TYPE if request.as_bytes().startswith(NPY_MAGIC) else SAFETENSORS_TYPE
    return _format_of(request)


def _format_of(request: Request) -> str:
    payload = request.payload
    if isinstance(payload, bytes | bytearray):
        return NPY_TYPE if payload.startswith(NPY_MAGIC) else TYPES.get(request.content_type, SAFETENSORS_TYPE)
    return JSON_TYPE


def _array(request: Request) -> np.ndarray[Any, Any]:
    payload = request.payload
    if isinstance(payload, str):
        payload = request.as_bytes()
    if isinstance(payload, np.ndarray):
        return payload
    if isinstance(payload, bytes | bytearray):
        return read_npy(payload) if _format_of(request) == NPY_TYPE else _only(read_safetensors(payload))
    return numbers_of(payload, "the tensor")


def _is_json(request: Request) -> bool:
    return not isinstance(request.payload, bytes | bytearray | str | np.ndarray)


def _only(arrays: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if len(arrays) != 1:
        raise UnprocessableContent(f"a safetensors file with {len(arrays)} tensors; expected one")
    return next(iter(arrays.values()))
