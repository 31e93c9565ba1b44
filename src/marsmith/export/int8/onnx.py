"""Eager module or float32 ONNX model to an int8 ONNX model, by a plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch

from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.formats.onnx import BATCH, INPUT, OPSET, OUTPUT, quietly, save_onnx, to_onnx
from marsmith.export.int8.calibration import Observed, find_ranges, observe
from marsmith.export.int8.graph import Array, Graph, Layer, attribute
from marsmith.export.int8.plan import Int8Plan
from marsmith.export.int8.qdq import Corrections, candidates, quantize_graph, weight_scales
from marsmith.export.int8.rounding import compensated, second_moments

_PIXEL_CHANNELS = 4


@dataclass(frozen=True)
class Calibrated:
    """A calibrated float32 model.

    Attributes:
        model: the float32 model.
        observed: its activations on the calibration images.
        weights: int8 weights by name of the layer, if the plan compensates rounding errors.
    """

    model: onnx.ModelProto
    observed: dict[str, Observed]
    weights: dict[str, Array]

    @property
    def layers(self) -> list[str]:
        """Names of the layers that can be int8, in order of execution."""
        return [layer.name for layer in Graph(self.model).layers]


def float_model(graph: torch.nn.Module, images: Sequence[torch.Tensor], folder: Path) -> onnx.ModelProto:
    """Export ``graph``, an eager module or TorchScript, to a float32 ONNX model, using a file in ``folder``.

    Raises:
        ExportError: ONNX cannot express the module, or no layer can be int8.
    """
    staged = folder / f".float.{os.getpid()}.onnx"
    try:
        if isinstance(graph, torch.jit.ScriptModule):
            torchscript_to_onnx(graph, images, staged)
        else:
            to_onnx(graph, images, staged)
        model = onnx.load(staged)
    finally:
        staged.unlink(missing_ok=True)
    if not Graph(model).layers:
        raise ExportError("the module has no convolution or linear layer with constant weights: nothing to quantise")
    return model


def torchscript_to_onnx(module: torch.jit.ScriptModule, images: Sequence[torch.Tensor], target: Path) -> None:
    """Export TorchScript with torch's older exporter, the only one that accepts it; names of weights are lost.

    Raises:
        ExportError: ONNX has no operator for one of its operations.
    """
    example = torch.stack([images[0], images[-1]])

    def export() -> None:
        torch.onnx.export(
            module.eval(),
            (example,),
            str(target),
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
            opset_version=OPSET,
        )

    try:
        quietly(export)
    except Exception as error:  # Such as torch's SymbolicValueError and UnsupportedOperatorError.
        raise ExportError(
            f"the TorchScript module cannot be exported to ONNX: {useful_line(error)}",
            tip="export the eager module by a recipe",
        ) from error
    save_onnx(onnx.shape_inference.infer_shapes(with_initializers(onnx.load(target))), target)


def with_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with its ``Constant`` nodes as initializers, in which layers look for weights."""
    kept = []
    for node in model.graph.node:
        value = next((item.t for item in node.attribute if item.name == "value" and item.HasField("t")), None)
        if node.op_type == "Constant" and value is not None:
            value.name = node.output[0]
            model.graph.initializer.append(value)
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def calibrate(model: onnx.ModelProto, plan: Int8Plan, calibration: Sequence[torch.Tensor]) -> Calibrated:
    """Run the calibration images through ``model``.

    Raises:
        ExportError: there are no calibration images, or an activation is not finite.
    """
    images = list(calibration)[: plan.images]
    observed = observe(model, candidates(Graph(model)), images)
    return Calibrated(model, observed, _compensated(model, images) if plan.rounding == "compensated" else {})


def _compensated(model: onnx.ModelProto, images: Sequence[torch.Tensor]) -> dict[str, Array]:
    graph = Graph(model)
    weights = {layer.name: graph.constant(layer.weight) for layer in graph.layers}
    # Every second image is enough: the moments are means over thousands of positions.
    moments = second_moments(model, images[::2])
    return {name: compensated(weights[name], weight_scales(weights[name]), moments[name]) for name in moments}


def quantize_calibrated(calibrated: Calibrated, plan: Int8Plan, engine: str) -> onnx.ModelProto:
    """Return the int8 model for ``engine``, ``onnxruntime`` or ``openvino``.

    Raises:
        ExportError: the plan names layers that the model does not have.
    """
    unknown = sorted(set(plan.float_layers) - set(calibrated.layers))
    if unknown:
        raise ExportError(
            f"the int8 plan leaves layers in float32 that the module does not have: {', '.join(unknown[:5])}",
            tip="the plan is of another model: search again with --relock",
        )
    graph = Graph(calibrated.model)
    left = {*plan.float_layers, *(_around_the_stem(graph) if engine == "openvino" else ())}
    means = {name: one.mean for name, one in calibrated.observed.items()} if plan.correct_bias else {}
    weights = calibrated.weights if plan.rounding == "compensated" else {}
    return quantize_graph(graph, find_ranges(calibrated.observed, plan), left, Corrections(means, weights))


def _around_the_stem(graph: Graph) -> list[str]:
    """Return the layers that read pixels, and the layers after them.

    With a dynamic batch, OpenVINO 2026.4 gives wrong values after a convolution of three channels with uint8 output.
    EfficientNet-Lite0 has a signal-to-noise ratio of 3 dB then, and of 18 dB with these layers in float32.
    """
    stems = [layer for layer in graph.layers if layer.node.op_type == "Conv" and _reads_pixels(graph, layer)]
    outputs = {layer.output for layer in stems}
    return [layer.name for layer in graph.layers if layer in stems or layer.input in outputs]


def _reads_pixels(graph: Graph, layer: Layer) -> bool:
    return int(graph.initializers[layer.weight].dims[1]) <= _PIXEL_CHANNELS and attribute(layer.node, "group", 1) == 1


def write_int8_onnx(model: onnx.ModelProto, target: Path) -> None:
    """Check and write an int8 model; the same model gives the same bytes."""
    save_onnx(model, target)
