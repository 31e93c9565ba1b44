"""Requirements of a TorchScript graph on its inputs and on the machine: checks of values, and named devices.

A rewritten graph has lost its checks silently: a trace keeps the branch that it took, and OpenVINO keeps the one that
does not raise. Checks of the number of axes of a tensor are not included, because a rewritten graph has them too.

The file is in ``handlers/``, because a worker's Python has no marsmith; ``marsmith/export/tracing/`` has a link to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

_PLAIN = frozenset(
    f"aten::{name}"
    for name in (
        *("eq", "ne", "lt", "le", "gt", "ge", "__not__", "__and__", "__or__", "__is__", "__isnot__", "__contains__"),
        *("add", "sub", "mul", "neg", "floordiv", "remainder", "Bool", "Int", "len", "__getitem__"),
    )
)
_BUILT = frozenset({"prim::ListConstruct", "prim::TupleConstruct"})


def value_checks(module: torch.jit.ScriptModule) -> list[str]:
    """Return the error messages that a module raises for some inputs with the right number of axes."""
    if not list(_raised(_inlined(module), by_rank=True)):
        return []
    # Frozen, which removes checks of training mode.
    return list(dict.fromkeys(_raised(straight_graph(module), by_rank=True)))


def absent_device(module: torch.jit.ScriptModule) -> tuple[str, Any] | None:
    """Return the first device that a module names and that this machine lacks, and the node.

    Nodes in branches may never run, so they do not count.
    """
    for node in _inlined(module).nodes():
        for value in [torch.device("cuda")] if node.kind() == "aten::cuda" else map(_known(module), node.inputs()):
            if isinstance(value, torch.device) and not _is_here(value):
                return str(value), node
    return None


def _inlined(module: torch.jit.ScriptModule) -> Any:
    """Return the graph of ``forward`` with all calls inlined; an empty one if a module has only other methods."""
    return getattr(module, "inlined_graph", None) or torch._C.Graph()


def _known(module: torch.jit.ScriptModule) -> Callable[[Any], Any]:
    """Return a function for the Python value of a constant or of an attribute of the module; None for other values."""

    def known(value: Any) -> Any:
        node = value.node()
        if node.kind() == "prim::Constant":
            return value.toIValue()
        if node.kind() == "prim::GetAttr":
            return getattr(known(node.input()), node.s("name"), None)
        return module if node.kind() == "prim::Param" else None

    return known


def _is_here(device: torch.device) -> bool:
    backend: Any = getattr(torch, device.type, None)
    if not hasattr(backend, "is_available"):
        return True
    return bool(backend.is_available()) and (device.index or 0) < backend.device_count()


def straight_graph(module: torch.jit.ScriptModule) -> Any:
    """Return the inlined graph, with weights as constants if it can be frozen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.freeze(module.eval()).graph
        except RuntimeError:  # It is frozen already, or cannot be.
            return module.inlined_graph


def _raised(block: Any, *, by_rank: bool) -> Iterator[str]:
    """Yield the errors of a block; ``by_rank``: whether only numbers of axes decide if it runs."""
    for node in block.nodes():
        kind = node.kind()
        if kind == "prim::RaiseException":
            if not by_rank:
                yield _message(node)
        elif "_assert" in kind and node.outputsSize() == 0:
            yield kind
        decided = by_rank and kind == "prim::If" and _is_of_rank(node.input())
        for inner in node.blocks():
            yield from _raised(inner, by_rank=decided)


def _is_of_rank(value: Any) -> bool:
    """Return whether a value depends only on constants and on numbers of axes."""
    node = value.node()
    kind, inputs = node.kind(), list(node.inputs())
    if kind in ("prim::Constant", "aten::dim"):
        return True
    if kind == "aten::len" and inputs[0].node().kind() in ("aten::size", *_BUILT):
        return len(list(inputs[0].node().inputs())) == 1 or inputs[0].node().kind() in _BUILT
    if kind == "prim::If":
        place = [output.debugName() for output in node.outputs()].index(value.debugName())
        given = [list(block.outputs())[place] for block in node.blocks()]
        return all(map(_is_of_rank, [*inputs, *given]))
    return kind in _PLAIN | _BUILT and all(map(_is_of_rank, inputs))


def _message(node: Any) -> str:
    said = next(iter(node.inputs())).node()
    known = said.kind() == "prim::Constant" and said.hasAttribute("value")
    return str(said.s("value")) if known else "an error"
