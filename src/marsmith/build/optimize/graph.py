"""Rebuild a TorchScript graph as an eager module of layers, for all exporters and quantisers. Imports torch.

``torch.onnx``, ``torch.export`` and ``torch.ao`` need an eager module, but an old archive only has TorchScript. A
frozen graph without control flow is a list of calls and can be written in ``torch.fx``: convolutions, linear layers,
batch norms and activations as modules with their weights, everything else as its operator. The caller compares the
results of the two modules.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from marsmith.error_text import typed_line
from marsmith.errors import ExportError
from marsmith.export import Recipe
from marsmith.export.recipes.torchscript import load_module, torchscript_recipe
from marsmith.export.tracing.graph_checks import straight_graph, value_checks

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "aten::relu": nn.ReLU,
    "aten::relu6": nn.ReLU6,
    "aten::hardswish": nn.Hardswish,
    "aten::hardsigmoid": nn.Hardsigmoid,
    "aten::silu": nn.SiLU,
    "aten::sigmoid": nn.Sigmoid,
}


def layer_of(kind: str, arguments: list[Any]) -> tuple[nn.Module | None, Any]:
    """Return the layer of a call, and its input; None if it is not a layer."""
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


# Folding batch norms changes the last digits; a larger difference means another module. A share of the largest output.
TOLERANCE = 1e-4
_TIP = "it stays TorchScript, which fewer engines take"
# Operators that only change how a value is stored, for inference on floats.
_SAME = {"aten::detach", "aten::alias", "aten::Int", "aten::ScalarImplicit", "prim::NumToTensor"}
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floor_divide": operator.floordiv,
}
# torch.ao supports these as functions of torch, not as operators.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten::cat": torch.cat,
    "aten::flatten": torch.flatten,
    "aten::mean": torch.mean,
    "aten::max_pool2d": nn.functional.max_pool2d,
    "aten::avg_pool2d": nn.functional.avg_pool2d,
    "aten::adaptive_avg_pool2d": nn.functional.adaptive_avg_pool2d,
}


def rebuild(module: torch.jit.ScriptModule) -> fx.GraphModule:
    """Return an eager float32 module equivalent to ``module``, which has one input and one output tensor.

    Raises:
        ExportError: the graph has control flow, raises for some values, or contains an operator or attribute without an
            eager form.
    """
    try:
        return _rebuild(module)
    except ExportError:
        raise
    except Exception as error:  # fx and the operators raise various exceptions for unexpected graphs.
        raise ExportError(f"the graph has no eager form: {typed_line(error)}", tip=_TIP) from error


def rebuilt_recipe(path: Path) -> Recipe:
    """Return the recipe of a TorchScript image classifier, with its eager module rebuilt if possible."""
    recipe = torchscript_recipe(path)
    return replace(recipe, build=lambda: rebuilt_or_same(load_module(path), recipe.preprocessing.crop))


def rebuilt_or_same(module: torch.jit.ScriptModule, size: tuple[int, int]) -> nn.Module:
    """Return the rebuilt ``module`` if its trace gives the same on noise of (N, 3, *size), for any N.

    Else ``module``.
    """
    try:
        made = rebuild(module)
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(made, torch.zeros(2, 3, *size), check_trace=False)
        difference = largest_difference(module, traced, size)
    except (ExportError, RuntimeError):
        return module
    return made if difference <= TOLERANCE else module


def largest_difference(one: nn.Module, other: nn.Module, size: tuple[int, int]) -> float:
    """Return the largest difference of the outputs for noise, as a share of the largest output."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for count in (3, 1):
            noise = torch.randn(count, 3, *size, generator=generator)
            wanted, given = one(noise), other(noise)
            difference = float((wanted - given).abs().max() / wanted.abs().max().clamp_min(1e-30))
            if not difference <= TOLERANCE:
                return difference
    return difference


def _rebuild(module: torch.jit.ScriptModule) -> fx.GraphModule:
    if checks := value_checks(module):
        raise ExportError(f"the graph checks what it is given, and would no longer: {'; '.join(checks)}", tip=_TIP)
    graph = straight_graph(module)
    inputs, outputs = list(graph.inputs()), list(graph.outputs())
    if len(inputs) != 2 or len(outputs) != 1:
        raise ExportError(
            f"the module takes {len(inputs) - 1} values and gives {len(outputs)}, not one of each", tip=_TIP
        )
    writer = _Writer(module)
    writer.values[inputs[0].debugName()] = module
    writer.values[inputs[1].debugName()] = writer.graph.placeholder("images")
    for node in graph.nodes():
        writer.add(node)
    writer.graph.output(writer.values[outputs[0].debugName()])
    made = fx.GraphModule(writer.root, writer.graph)
    made.graph.eliminate_dead_code()
    made.delete_all_unused_submodules()
    made.recompile()
    return made.eval()


def _block_that_passes(node: Any) -> Any | None:
    """Return the block of an ``if`` that does not raise, if the other one does: a check of the number of axes."""
    raising = [any(inner.kind() == "prim::RaiseException" for inner in block.nodes()) for block in node.blocks()]
    if next(node.outputs(), None) is not None or raising.count(True) != 1:
        return None
    return list(node.blocks())[raising.index(False)]


class _Writer:
    """Converts nodes of TorchScript into fx, one by one.

    Attributes:
        values: value by name: a Python value, a tensor, a script module, or an fx node.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Any] = {}
        self._numbers: set[fx.Node] = set()

    def add(self, node: Any) -> None:
        """Convert one node.

        Raises:
            ExportError: the node has no eager form.
        """
        kind = node.kind()
        if kind == "prim::Constant":
            output = node.output()
            self.values[output.debugName()] = output.toIValue() if node.hasAttribute("value") else None
            return
        if kind == "prim::GetAttr":
            self._set(node, getattr(self._value(node.input()), node.s("name")))
            return
        if kind == "prim::If" and (passed := _block_that_passes(node)) is not None:
            for inner in passed.nodes():
                self.add(inner)
            return
        arguments = [self._value(value) for value in node.inputs()]
        if kind in ("prim::ListConstruct", "prim::TupleConstruct"):
            self._set(node, list(arguments))
        elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            self._unpack(node, arguments[0])
        elif kind == "aten::append" and isinstance(arguments[0], list):
            arguments[0].append(arguments[1])
        elif kind != "aten::warn":
            self._set(node, self._call(node, kind, arguments))

    def _value(self, value: Any) -> Any:
        return self.values[value.debugName()]

    def _set(self, node: Any, value: Any) -> None:
        if node.outputsSize() == 1:
            self.values[node.output().debugName()] = value
        else:
            self._unpack(node, value)

    def _unpack(self, node: Any, source: Any) -> None:
        for index, output in enumerate(node.outputs()):
            part = source[index] if isinstance(source, list) else self._function(operator.getitem, (source, index))
            self.values[output.debugName()] = part

    def _call(self, node: Any, kind: str, arguments: list[Any]) -> Any:
        if kind in _SAME:
            return arguments[0]
        if kind == "aten::size" and len(arguments) == 2:
            return self._number(self.graph.call_method("size", tuple(map(self._placed, arguments))))
        if kind.startswith("prim::") or next(node.blocks(), None) is not None:
            raise ExportError(f"the graph holds {kind}: control flow, or nothing that is known", tip=_TIP)
        # In-place operators: a later read under the old name would be detected by the comparison.
        plain = kind.removesuffix("_")
        if plain in _ARITHMETIC and self._has_sizes(arguments):
            return self._number(self._function(_ARITHMETIC[plain], tuple(arguments[:2])))
        return self._layer(plain, arguments) or self._operator(node, plain, arguments)

    def _layer(self, kind: str, arguments: list[Any]) -> fx.Node | None:
        """Convert the node into a module or one of torch's functions; None if neither exists."""
        if kind in ("aten::dropout", "aten::feature_dropout") and arguments[2] is False:
            return self._placed(arguments[0])  # type: ignore[no-any-return]
        made, taken = layer_of(kind, arguments)
        if made is not None:
            name = f"layer{len(self.root._modules)}"
            self.root.add_module(name, made)
            return self.graph.call_module(name, (self._placed(taken),))
        if kind in ("aten::add", "aten::mul") and (kind == "aten::mul" or arguments[2] == 1):
            return self._function(_ARITHMETIC[kind], tuple(arguments[:2]))
        if kind in _FUNCTIONS:
            dropped = arguments[:-1] if kind == "aten::mean" and arguments[-1] is None else arguments
            return self._function(_FUNCTIONS[kind], tuple(dropped))
        return None

    def _operator(self, node: Any, kind: str, arguments: list[Any]) -> fx.Node:
        """Convert the node into its operator, out of place."""
        namespace, _, name = kind.partition("::")
        try:
            schema = torch._C.parse_schema(node.schema())
            packet = getattr(getattr(torch.ops, namespace), name)
            target = getattr(packet, schema.overload_name or "default")
        except (AttributeError, RuntimeError):
            raise ExportError(f"the graph holds {kind}, which is not an operator of this torch", tip=_TIP) from None
        pairs = list(zip(schema.arguments, arguments, strict=True))
        given = tuple(value for argument, value in pairs if not argument.kwarg_only)
        named = {argument.name: self._placed(value) for argument, value in pairs if argument.kwarg_only}
        if self._has_sizes(given) and hasattr(torch.Tensor, name):
            # Tracing follows a size from a tensor through methods, but not through operators.
            return self.graph.call_method(name, tuple(map(self._placed, given)), named)
        return self._function(target, given, named)

    def _has_sizes(self, arguments: Iterable[Any]) -> bool:
        return any(
            self._has_sizes(one) if isinstance(one, list) else isinstance(one, fx.Node) and one in self._numbers
            for one in arguments
        )

    def _function(self, target: Any, arguments: tuple[Any, ...], named: dict[str, Any] | None = None) -> fx.Node:
        return self.graph.call_function(target, tuple(map(self._placed, arguments)), named or {})

    def _number(self, node: fx.Node) -> fx.Node:
        self._numbers.add(node)
        return node

    def _placed(self, value: Any) -> Any:
        """Return a value as an argument; tensors become buffers of the module."""
        if isinstance(value, list):
            return [self._placed(one) for one in value]
        if isinstance(value, torch.Tensor):
            name = f"tensor{len(self.root._buffers)}"
            self.root.register_buffer(name, value.detach().clone())
            return self.graph.get_attr(name)
        if isinstance(value, torch.jit.ScriptModule | torch.ScriptObject):
            raise ExportError(f"the graph passes on an object, a {type(value).__name__}", tip=_TIP)
        return value
