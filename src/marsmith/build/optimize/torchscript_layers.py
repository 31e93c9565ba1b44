"""Calls of TorchScript's operators as layers of torch.nn, with their weights. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "aten::relu": nn.ReLU,
    "aten::relu6": nn.ReLU6,
    "aten::hardswish": nn.Hardswish,
    "aten::hardsigmoid": nn.Hardsigmoid,
    "aten::silu": nn.SiLU,
    "aten::sigmoid": nn.Sigmoid,
}


def layer_of(kind: str, arguments: list[Any]) -> tuple[nn.Module | None, Any]:
    """Return the layer that a call is, and what it is called on; None where it is no layer."""
    if kind in _ACTIVATIONS:
        return _ACTIVATIONS[kind](), arguments[0]
    if kind == "aten::hardtanh" and arguments[1:3] == [0, 6]:
        return nn.ReLU6(), arguments[0]
    if kind in ("aten::_convolution", "aten::conv2d"):
        return _convolution(kind, arguments), arguments[0]
    if kind == "aten::linear" and _all_tensors(arguments[1], arguments[2]):
        return _linear(arguments[1], arguments[2]), arguments[0]
    if kind == "aten::addmm" and _all_tensors(arguments[0], arguments[2]) and arguments[3:5] == [1, 1]:
        return _linear(arguments[2].t(), arguments[0]), arguments[1]
    if kind == "aten::batch_norm" and arguments[5] is False and _all_tensors(*arguments[1:5]):
        return _batch_norm(arguments), arguments[0]
    return None, None


def _all_tensors(*values: Any) -> bool:
    return all(value is None or isinstance(value, torch.Tensor) for value in values)


def _convolution(kind: str, arguments: list[Any]) -> nn.Module | None:
    weight, bias, stride, padding, dilation = arguments[1:6]
    transposed, groups = (arguments[6], arguments[8]) if kind == "aten::_convolution" else (False, arguments[6])
    plain = _all_tensors(weight, bias) and isinstance(weight, torch.Tensor) and weight.ndim == 4 and not transposed
    if not plain or not all(isinstance(one, list) for one in (stride, padding, dilation)):
        return None
    outputs, inputs, *size = weight.shape
    step, around, spread = (one * (2 // len(one)) for one in (stride, padding, dilation))
    made = nn.Conv2d(
        inputs * groups,
        outputs,
        (size[0], size[1]),
        stride=(step[0], step[1]),
        padding=(around[0], around[1]),
        dilation=(spread[0], spread[1]),
        groups=groups,
        bias=bias is not None,
    )
    return _filled(made, weight=weight, bias=bias)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    return _filled(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None), weight=weight, bias=bias)


def _batch_norm(arguments: list[Any]) -> nn.Module:
    weight, bias, mean, variance = arguments[1:5]
    made = nn.BatchNorm2d(len(mean), eps=arguments[7], affine=weight is not None)
    return _filled(made, weight=weight, bias=bias, running_mean=mean, running_var=variance)


def _filled(module: nn.Module, **tensors: torch.Tensor | None) -> nn.Module:
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor is not None:
                getattr(module, name).copy_(tensor)
    return module.eval()
