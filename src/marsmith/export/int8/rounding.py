"""Round weights to int8 so that the errors of neighbours cancel on the layer's real inputs.

Weights are rounded one input after the other. The error of each rounding is compensated by the inputs that are not
rounded yet, as far as they correlate with it (Frantar et al. 2022, "GPTQ", section 3, for 8 bits). It costs nothing at
run time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch.nn.functional import pad

from marsmith.export.int8.calibration import ActivationProbe, batches
from marsmith.export.int8.graph import Array, Graph, Layer, attribute, attributes

# Products with more inputs are rounded directly: the matrix would grow with their square, and their errors average out.
MOST_INPUTS = 1200
# Number of positions of an image that are used; neighbours are similar.
_POSITIONS = 200
# Added to the diagonal, as a share of its mean: keeps the inverse stable in directions without calibration data.
_DAMPING = 0.01
# Number of inputs that are rounded before all later ones are updated.
_BLOCK = 64


def second_moments(model: onnx.ModelProto, images: Sequence[torch.Tensor]) -> dict[str, Array]:
    """Return the mean products of inputs of each convolution, by name: (groups, K, K), K inputs of an output.

    Layers with more than MOST_INPUTS inputs, dilated layers, and grouped layers that are not depthwise are left out.
    """
    graph = Graph(model)
    chosen = [layer for layer in graph.layers if _fits(graph, layer)]
    probe = ActivationProbe(model, list(dict.fromkeys(layer.input for layer in chosen)))
    sums: dict[str, Array] = {}
    count = 0
    for batch in batches(images):
        values = probe(batch)
        count += 1
        for layer in chosen:
            products = _products(graph, layer, values[layer.input])
            sums[layer.name] = sums[layer.name] + products if layer.name in sums else products
    return {name: total / count for name, total in sums.items()}


def _fits(graph: Graph, layer: Layer) -> bool:
    dims = graph.initializers[layer.weight].dims
    dense = attribute(layer.node, "group", 1) == 1
    whole = set(attributes(layer.node, "dilations", (1,))) == {1}
    return whole and (dense or dims[1] == 1) and int(np.prod(dims[1:])) <= MOST_INPUTS


def _products(graph: Graph, layer: Layer, values: Array) -> Array:
    """Return the mean products (groups, K, K) of one batch (N, C, H, W) or (N, C)."""
    taken = torch.from_numpy(values)
    if layer.node.op_type == "Conv":
        tall, wide = graph.initializers[layer.weight].dims[2:]
        top, left, bottom, right = attributes(layer.node, "pads", (0, 0, 0, 0))
        down, across = attributes(layer.node, "strides", (1, 1))
        padded = pad(taken, (left, right, top, bottom))
        # Views; only the positions in use are copied.
        windows = padded.unfold(2, tall, down).unfold(3, wide, across)
        every = max(1, math.isqrt(windows.shape[2] * windows.shape[3] // _POSITIONS))
        windows = windows[:, :, ::every, ::every].permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)
        groups = attribute(layer.node, "group", 1)
        columns = windows.unflatten(1, (groups, -1)).permute(1, 2, 0, 3).flatten(2).double()
    else:
        columns = taken.T[None].double()
    products: Array = (columns @ columns.transpose(1, 2) / columns.shape[2]).numpy()
    return products


def compensated(weight: Array, scales: Array, moments: Array) -> Array:
    """Return a weight (O, ...) as int8 with compensated rounding errors.

    Args:
        weight: float32.
        scales: scale of each output channel (O,).
        moments: second moments of the inputs (groups, K, K), O a multiple of groups.
    """
    groups, inputs = moments.shape[:2]
    left = (weight.astype(np.float64) / scales.reshape((-1,) + (1,) * (weight.ndim - 1))).reshape(groups, -1, inputs)
    # The strongest inputs first, while there are others left to compensate their errors.
    order = np.argsort(-np.diagonal(moments, axis1=1, axis2=2).mean(axis=0), kind="stable")
    left, factors = left[:, :, order], _factors(moments[:, order][:, :, order])
    result = np.empty_like(left)
    for start in range(0, inputs, _BLOCK):
        block = slice(start, min(start + _BLOCK, inputs))
        result[:, :, block], errors = _round_block(left[:, :, block], factors[:, block, block])
        # The errors of a block update all later inputs at once: one matrix product is many times faster than single
        # updates.
        left[:, :, block.stop :] -= errors @ factors[:, block, block.stop :]
    return result[:, :, np.argsort(order)].reshape(weight.shape).astype(np.int8)


def _round_block(left: Array, factors: Array) -> tuple[Array, Array]:
    """Round weights (groups, O, B) one input after the other.

    Args:
        left: weights to round, in units of the scale.
        factors: factors of these inputs (groups, B, B).

    Returns:
        The rounded weights, and the errors that later inputs must compensate, both (groups, O, B).
    """
    left = left.copy()
    result, errors = np.empty_like(left), np.empty_like(left)
    for at in range(left.shape[2]):
        result[:, :, at] = np.clip(np.round(left[:, :, at]), -127, 127)
        errors[:, :, at] = (left[:, :, at] - result[:, :, at]) / factors[:, at, at, None]
        left[:, :, at + 1 :] -= errors[:, :, at, None] * factors[:, None, at, at + 1 :]
    return result, errors


def _factors(moments: Array) -> Array:
    """Return the upper triangular factors of the inverses (groups, K, K)."""
    power = np.maximum(np.diagonal(moments, axis1=1, axis2=2).mean(axis=1), 1e-12)
    damped = moments + np.eye(moments.shape[1]) * (power * _DAMPING)[:, None, None]
    factors: Array = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    return factors
