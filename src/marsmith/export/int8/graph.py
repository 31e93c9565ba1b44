"""An ONNX model for quantisation: layers with weights, the tensors between them, and their readers. Imports onnx."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]
# A Relu or Clip after a layer is free in int8: it is an end of the output's range.
ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Layer:
    """A convolution, or a matrix product with constant weights, with its fused activation.

    Attributes:
        name: name of its weight without ``.weight``; of its node if that has no meaning.
        node: the ``Conv`` or ``Gemm``.
        output: tensor after the activation, or after the node if there is none.
    """

    name: str
    node: onnx.NodeProto
    output: str

    @property
    def input(self) -> str:
        """Name of the input activation."""
        return str(self.node.input[0])

    @property
    def weight(self) -> str:
        """Name of the weight's initializer."""
        return str(self.node.input[1])

    @property
    def bias(self) -> str | None:
        """Name of the bias's initializer."""
        return str(self.node.input[2]) if len(self.node.input) > 2 and self.node.input[2] else None


class Graph:
    """Reads and changes one ONNX model; ``model`` is a copy of the original."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = copy.deepcopy(model)
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.model.graph.output}
        self.layers = list(self._layers())

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Nodes, each after the nodes that it reads from."""
        return list(self.model.graph.node)

    def constant(self, name: str) -> Array:
        """Return an initializer's values."""
        return numpy_helper.to_array(self.initializers[name])

    def set_constant(self, name: str, values: Array) -> None:
        """Change an initializer's values."""
        self.initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(values, order="C"), name))

    def add_constant(self, name: str, values: Array) -> str:
        """Add an initializer, and return its name."""
        self.initializers[name] = self.model.graph.initializer.add()
        self.set_constant(name, values)
        return name

    def fused(self, output: str) -> str:
        """Return the tensor after the activation if it is the only reader of ``output``; else ``output``."""
        readers = self.consumers.get(output, [])
        if output not in self.outputs and len(readers) == 1 and readers[0].op_type in ACTIVATIONS:
            return str(readers[0].output[0])
        return output

    def _layers(self) -> Iterator[Layer]:
        for node in self.nodes:
            if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0) == 1):
                weight = node.input[1]
                if weight in self.initializers and len(self.consumers[weight]) == 1:
                    name = weight.removesuffix(".weight") if weight.endswith(".weight") else node.name
                    yield Layer(name, node, self.fused(node.output[0]))


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return a node's integer attribute."""
    return next((int(item.i) for item in node.attribute if item.name == name), default)


def attributes(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return a node's list of integers."""
    return next((tuple(item.ints) for item in node.attribute if item.name == name), default)
