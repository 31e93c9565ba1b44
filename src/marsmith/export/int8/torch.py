"""int8 in TorchScript with torch.ao's graph mode: the only module that uses torch.ao, which PyTorch plans to remove.

Everything else uses ONNX (``int8_onnx``). When torch.ao is removed, so are this module and the form
``torchscript/int8/torch``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.formats import torchscript_file
from marsmith.export.int8.plan import Int8Plan

ENGINE = "x86"
BATCH_SIZE = 8


def write_int8_torchscript(
    graph: torch.nn.Module,
    plan: Int8Plan,
    calibration: Sequence[torch.Tensor],
    images: Sequence[torch.Tensor],
    target: Path,
) -> None:
    """Quantise an eager module and write it as traced, frozen TorchScript.

    Args:
        graph: the eager module; it is not changed.
        plan: plan of the quantisation; ``correct_bias`` and compensated rounding are not supported and must be off.
        calibration: uint8 (3, H, W).
        images: uint8 (3, H, W) to trace with.
        target: file to write.

    Raises:
        ExportError: the module cannot be quantised this way.
    """
    quantized = quantize_module(graph, plan, calibration, images)
    example = torch.stack([images[0], images[-1]])
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(quantized, example, check_trace=False).eval())
        torchscript_file.save_normalised(frozen, target)


def layers(graph: torch.nn.Module) -> list[str]:
    """Return the names of the layers that can be int8, in the order of construction."""
    return [name for name, module in graph.named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]


def quantize_module(
    graph: torch.nn.Module, plan: Int8Plan, calibration: Sequence[torch.Tensor], images: Sequence[torch.Tensor]
) -> torch.nn.Module:
    """Return the int8 module.

    Raises:
        ExportError: the module is TorchScript already, the plan is not for torch, or torch.fx cannot trace it.
    """
    _require(graph, plan, calibration)
    from torch.ao.quantization import quantize_fx

    torch.backends.quantized.engine = ENGINE
    example = (torch.stack([images[0], images[-1]]),)
    source = _with_plain_padding(copy.deepcopy(graph)).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            prepared = quantize_fx.prepare_fx(source, _mapping(plan), example, backend_config=_backend())
            for start in range(0, min(plan.images, len(calibration)), BATCH_SIZE):
                prepared(torch.stack(list(calibration[start : min(start + BATCH_SIZE, plan.images)])))
            converted: torch.nn.Module = quantize_fx.convert_fx(prepared, backend_config=_backend())
        except Exception as error:  # torch.fx raises TraceError, RuntimeError, and exceptions of the module itself.
            raise ExportError(
                f"torch.ao cannot quantise the module: {useful_line(error)}",
                tip="take engine: onnxruntime or openvino for int8, or another precision",
            ) from error
    return converted.eval()


def _require(graph: torch.nn.Module, plan: Int8Plan, calibration: Sequence[torch.Tensor]) -> None:
    if isinstance(graph, torch.jit.ScriptModule):
        raise ExportError(
            "torch.ao quantises eager modules only, and this is TorchScript",
            tip="take engine: onnxruntime or openvino for int8",
        )
    if plan.correct_bias or plan.rounding != "nearest":
        raise ExportError("the int8 plan is for another engine: torch.ao neither corrects biases nor compensates")
    if not calibration:
        raise ExportError("int8 needs calibration images", tip="name some in the spec: export.calibration")
    if ENGINE not in torch.backends.quantized.supported_engines:
        raise ExportError(f"this build of torch has no {ENGINE} engine for int8", tip="take engine: onnxruntime")
    unknown = sorted(set(plan.float_layers) - set(layers(graph)))
    if unknown:
        raise ExportError(
            f"the int8 plan leaves layers in float32 that the module does not have: {', '.join(unknown[:5])}",
            tip="the plan is of another model: search again with --relock",
        )


def _mapping(plan: Int8Plan) -> Any:
    from torch.ao.quantization import QConfig, QConfigMapping, get_default_qconfig_mapping, observer

    observers: dict[str, Any] = {"minmax": observer.MinMaxObserver, "histogram": observer.HistogramObserver}
    if plan.ranges not in observers:
        raise ExportError(f"torch.ao has no ranges by {plan.ranges}", tip="take minmax or histogram")
    activation = observers[plan.ranges].with_args(dtype=torch.quint8, reduce_range=False)
    config = QConfig(activation=activation, weight=observer.default_per_channel_weight_observer)
    mapping: QConfigMapping = get_default_qconfig_mapping(ENGINE).set_global(config)
    for kind in (torch.nn.Conv2d, torch.nn.Linear, torch.nn.ReLU, torch.nn.ReLU6, torch.nn.functional.relu):
        mapping.set_object_type(kind, config)
    for name in plan.float_layers:
        mapping.set_module_name(name, None)
    return mapping


def _backend() -> Any:
    from torch.ao.quantization.backend_config import get_native_backend_config

    return get_native_backend_config()


class _PaddedConvolution(torch.nn.Sequential):
    """Padding and a convolution, both in int8; as a module of another library they would stay float32."""


def _with_plain_padding(graph: torch.nn.Module) -> torch.nn.Module:
    """Replace convolutions that pad themselves (TensorFlow's ``SAME``) by ZeroPad2d and a plain Conv2d.

    torch.ao supports only ``Conv2d``. A subclass with its own forward stays float32, between conversions that made the
    naive int8 of EfficientNet-Lite0 13 times slower than float32.
    """
    for name, child in list(graph.named_children()):
        padding = getattr(child, "static_padding", None)
        if isinstance(child, torch.nn.Conv2d) and padding is not None:
            plain = _plain(child)
            setattr(graph, name, _PaddedConvolution(padding, plain) if _pads(padding) else plain)
        else:
            _with_plain_padding(child)
    return graph


def _pads(padding: torch.nn.Module) -> bool:
    return isinstance(padding, (torch.nn.ZeroPad2d, torch.nn.ConstantPad2d))


def _plain(layer: torch.nn.Conv2d) -> torch.nn.Conv2d:
    made = torch.nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=layer.bias is not None,
    )
    made.weight, made.bias = layer.weight, layer.bias
    return made
