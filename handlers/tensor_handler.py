"""Tensors in, tensors out: for any TorchScript module that takes one batch of tensors.

A request is one row of the batch: a JSON list (or ``{"data": [...]}``), a ``.npy`` file, or a safetensors file with one
tensor. The reply comes as the request did, or as its ``accept`` header asks: as a JSON list, ``.npy`` or safetensors.
Settings, in the block ``handler`` of model-config.yaml: ``input_dtype`` (as ``float32``; default: float32 for JSON, and
what the file says otherwise) and ``input_shape`` (of one row; others are refused with 422).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import devices
from base_handler import BaseHandler
from item_errors import MalformedRequest, Unusable
from replies import JSON_TYPE, Reply
from request_envelope import Request
from tensor_formats import (
    NPY_MAGIC,
    NPY_TYPE,
    SAFETENSORS_TYPE,
    read_npy,
    read_safetensors,
    write_npy,
    write_safetensors,
)

# What a sender may write for the same two formats.
TYPES = {NPY_TYPE: NPY_TYPE, "application/npy": NPY_TYPE, SAFETENSORS_TYPE: SAFETENSORS_TYPE}
TYPES["application/safetensors"] = SAFETENSORS_TYPE


class TensorHandler(BaseHandler):
    """Runs a TorchScript module on rows of numbers."""

    def load(self) -> None:
        """Load the model and the settings."""
        super().load()
        name = self.config.get("input_dtype")
        self.dtype = getattr(torch, str(name), None) if name else None
        if name and not isinstance(self.dtype, torch.dtype):
            raise RuntimeError(f"model-config.yaml, block handler: input_dtype {name!r} is no dtype of torch")
        shape = self.config.get("input_shape")
        self.shape = tuple(shape) if shape is not None else None

    def warm_up_item(self) -> torch.Tensor | None:
        """Return zeros, where the settings tell the shape."""
        return None if self.shape is None else torch.zeros(self.shape, dtype=self.dtype or torch.float32)

    def decode(self, request: Request) -> torch.Tensor:
        """Read one tensor, without a batch dimension."""
        tensor = torch.as_tensor(_array(request))
        tensor = tensor if self.dtype is None else tensor.to(self.dtype)
        if self.shape is not None and tensor.shape != self.shape:
            raise Unusable(f"a tensor of shape {list(tensor.shape)}; the model takes {list(self.shape)}")
        return tensor

    def infer(self, items: list[torch.Tensor]) -> list[torch.Tensor]:
        """Run the module on the rows, batched by shape and dtype; return one row of its output each."""
        groups: dict[Any, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault((item.shape, item.dtype), []).append(index)
        results: list[torch.Tensor] = [torch.empty(0)] * len(items)
        for indices in groups.values():
            outputs = self.model(devices.stack_on([items[index] for index in indices], self.device)).cpu()
            for index, output in zip(indices, outputs, strict=True):
                results[index] = output
        return results

    def encode(self, result: torch.Tensor, request: Request) -> Any:
        """Return the row as nested lists, or as a file of the format that the request came in or asks for."""
        accepted = request.headers.get("accept", "").partition(";")[0].strip().lower()
        wanted = accepted if accepted in (*TYPES, JSON_TYPE) else _format_of(request)
        if wanted == JSON_TYPE:
            return result.tolist()
        array = result.contiguous().numpy()
        if TYPES[wanted] == NPY_TYPE:
            return Reply(write_npy(array), NPY_TYPE)
        return Reply(write_safetensors({"output": array}), SAFETENSORS_TYPE)


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
    try:
        return np.array(payload, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        raise MalformedRequest("expected numbers, or lists of numbers that are equally long") from None


def _only(arrays: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    if len(arrays) != 1:
        raise Unusable(f"a safetensors file with {len(arrays)} tensors; expected one")
    return next(iter(arrays.values()))
