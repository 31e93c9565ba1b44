"""Insert int8 into an ONNX model: each layer between QuantizeLinear and DequantizeLinear, which engines fuse.

ONNX Runtime and OpenVINO both support this notation, and run ``dequantize, convolve, activate, quantize`` as one
integer kernel. Activations are uint8 with one scale per tensor, weights int8 with one scale per channel, biases int32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from marsmith.export.int8.calibration import Range, quantization
from marsmith.export.int8.graph import ACTIVATIONS, Array, Graph, Layer

# These compute on tensors that are int8 on both sides, or pass values through.
_JOINS = ("Add",)
_PASSES = ("MaxPool",)
# Largest weight of a channel, as a share of the layer's largest, below which its scale does not get smaller.
_SMALLEST_CHANNEL = 1e-4


def quantized_tensors(graph: Graph, float_layers: Collection[str]) -> dict[str, str]:
    """Return the activations that become uint8, each with the activation whose range it has, usually itself."""
    chosen: dict[str, str] = {}
    for layer in graph.layers:
        if layer.name not in float_layers:
            # Logits in 256 steps would tie for similar classes; integer products give float32 without loss.
            ends = (layer.input, layer.output) if layer.node.op_type == "Conv" else (layer.input,)
            chosen.update((name, name) for name in ends if name not in graph.outputs)
    for node in graph.nodes:
        if node.op_type in _JOINS and all(name in chosen for name in node.input):
            output = graph.fused(node.output[0])
            if output not in graph.outputs:
                chosen.setdefault(output, output)
        elif node.op_type in _PASSES and node.input[0] in chosen and node.output[0] in chosen:
            chosen[node.output[0]] = chosen[node.input[0]]
    return chosen


def candidates(graph: Graph) -> list[str]:
    """Return every activation whose range ``quantize_graph`` may need."""
    return list(quantized_tensors(graph, ()))


@dataclass(frozen=True)
class Corrections:
    """Corrections of the rounding of weights; empty for none.

    Attributes:
        means: mean of each channel of each tensor (C,): the mean error of rounding is subtracted from the bias of each
            output. (Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction",
            section 4.2.)
        weights: int8 weights by name of the layer; others are rounded to the nearest value.
    """

    means: Mapping[str, Array] = field(default_factory=dict)
    weights: Mapping[str, Array] = field(default_factory=dict)


def quantize_graph(
    graph: Graph, ranges: Mapping[str, Range], float_layers: Collection[str], corrections: Corrections
) -> onnx.ModelProto:
    """Return the int8 model; ``graph`` must not be used afterwards.

    Args:
        graph: the float32 model.
        ranges: range of each of ``candidates``.
        float_layers: names of layers to leave in float32.
        corrections: corrections of the rounding.
    """
    chosen = quantized_tensors(graph, float_layers)
    added: dict[str, list[onnx.NodeProto]] = {}
    for name, origin in chosen.items():
        added[name] = _activation_pair(graph, name, quantization(_span(graph, name, ranges[origin])))
    readers = {name: f"{name}_float" for name in chosen}
    head: list[onnx.NodeProto] = []
    for layer in graph.layers:
        if layer.name not in float_layers:
            scale = quantization(_span(graph, layer.input, ranges[chosen[layer.input]]))[0]
            head += _parameters(graph, layer, scale, corrections)
    for node in graph.nodes:
        node.input[:] = [readers.get(name, name) for name in node.input]
    body = _interleaved(graph, head, added)
    del graph.model.graph.node[:]
    graph.model.graph.node.extend(body)
    _drop_unused(graph.model)
    return graph.model


def _span(graph: Graph, name: str, span: Range) -> Range:
    """Return the range without negative values for a tensor after a Relu, whatever the calibration of a fused one."""
    producer = graph.producers.get(name)
    return (0.0, span[1]) if producer is not None and producer.op_type in ACTIVATIONS else span


def _activation_pair(graph: Graph, name: str, parameters: tuple[float, int]) -> list[onnx.NodeProto]:
    scale = graph.add_constant(f"{name}_scale", np.array(parameters[0], dtype=np.float32))
    zero = graph.add_constant(f"{name}_zero_point", np.array(parameters[1], dtype=np.uint8))
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_uint8"], f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_uint8", scale, zero], [f"{name}_float"], f"{name}_dequantize"),
    ]


def weight_scales(weight: Array) -> Array:
    """Return the scale of each output channel of a weight (O, ...)."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    # The weights of a dead channel, a millionth of the others', are practically zero; a scale for them would overflow
    # its bias.
    steps: Array = np.maximum(largest, max(float(largest.max()), 1e-6) * _SMALLEST_CHANNEL).astype(np.float32)
    return steps / np.float32(127)


def nearest(weight: Array, scales: Array) -> Array:
    """Return a weight (O, ...) as int8, each value rounded separately."""
    whole: Array = np.clip(np.round(weight / scales.reshape((-1,) + (1,) * (weight.ndim - 1))), -127, 127)
    return whole.astype(np.int8)


def _parameters(graph: Graph, layer: Layer, input_scale: float, corrections: Corrections) -> list[onnx.NodeProto]:
    """Add a layer's int8 weight and int32 bias, and connect them."""
    weight = graph.constant(layer.weight)
    bias = graph.constant(layer.bias) if layer.bias else np.zeros(len(weight), dtype=np.float32)
    scales = weight_scales(weight)
    rounded = corrections.weights.get(layer.name, nearest(weight, scales))
    mean = corrections.means.get(layer.input)
    if mean is not None:
        bias = bias - _shift(weight, rounded * scales.reshape((-1,) + (1,) * (weight.ndim - 1)), mean)
    steps = (scales * np.float32(input_scale)).astype(np.float32)
    whole = np.clip(np.round(bias.astype(np.float64) / steps), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    nodes = [_dequantize(graph, layer.weight, rounded, scales)]
    nodes.append(_dequantize(graph, f"{layer.weight}_{layer.bias or 'bias'}", whole, steps))
    layer.node.input[:] = [layer.input, nodes[0].output[0], nodes[1].output[0]]
    return nodes


def _shift(weight: Array, rounded: Array, mean: Array) -> Array:
    """Return the mean error of rounding in each output channel (O,), for inputs of mean ``mean`` (C,)."""
    error = (rounded - weight).reshape(*weight.shape[:2], -1).sum(axis=2, dtype=np.float64)
    groups = len(mean) // weight.shape[1]
    by_group = error.reshape(groups, -1, weight.shape[1])
    shift: Array = (by_group * mean.reshape(groups, 1, -1)).sum(axis=2).reshape(-1).astype(np.float32)
    return shift


def _dequantize(graph: Graph, name: str, values: Array, scales: Array) -> onnx.NodeProto:
    stored = graph.add_constant(f"{name}_{values.dtype}", values)
    scale = graph.add_constant(f"{name}_scale", scales)
    zero = graph.add_constant(f"{name}_zero_point", np.zeros(len(scales), dtype=values.dtype))
    return helper.make_node("DequantizeLinear", [stored, scale, zero], [f"{name}_float"], f"{name}_dequantize", axis=0)


def _interleaved(
    graph: Graph, head: list[onnx.NodeProto], added: Mapping[str, list[onnx.NodeProto]]
) -> list[onnx.NodeProto]:
    """Insert each pair after the node that computes its tensor."""
    body = list(head)
    for name in graph.model.graph.input:
        body += added.get(name.name, [])
    for node in graph.nodes:
        body.append(node)
        for output in node.output:
            body += added.get(output, [])
    return body


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    # Readers infer the shapes of the float tensors again.
    del model.graph.value_info[:]
