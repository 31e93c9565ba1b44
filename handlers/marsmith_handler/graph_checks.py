"""What a TorchScript graph asks of its inputs and of the machine: checks of values, and devices that it names.

A rewritten graph has lost its checks without a word: a trace keeps the branch that it saw, and OpenVINO keeps the one
that does not raise. Checks of how many axes a tensor has are not meant: those a rewritten graph has of its own.

The same file lies in ``handlers/`` and in ``marsmith/``, as a worker's Python has no marsmith: a test holds the two
equal.
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
    """Return what a module raises for some inputs of a right number of axes, in the words of its errors."""
    if not list(_raised(_inlined(module), by_rank=True)):
        return []
    # Frozen: what is checked in training alone is gone.
    return list(dict.fromkeys(_raised(straight_graph(module), by_rank=True)))


def absent_device(module: torch.jit.ScriptModule) -> tuple[str, Any] | None:
    """Return the first device that a module names, whatever its input is, and that this machine lacks; and the node.

    What stands in a branch may never be run, and does not count.
    """
    for node in _inlined(module).nodes():
        for value in [torch.device("cuda")] if node.kind() == "aten::cuda" else map(_known(module), node.inputs()):
            if isinstance(value, torch.device) and not _is_here(value):
                return str(value), node
    return None


def _inlined(module: torch.jit.ScriptModule) -> Any:
    """Return the graph of ``forward`` with all that it calls; an empty one where a module has other methods only."""
    return getattr(module, "inlined_graph", None) or torch._C.Graph()


def _known(module: torch.jit.ScriptModule) -> Callable[[Any], Any]:
    """Return what gives the Python value of a constant, or of an attribute of the module; None of anything else."""

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
    """Return the graph, inlined, its weights constants where it can be frozen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.freeze(module.eval()).graph
        except RuntimeError:  # it is frozen already, or cannot be
            return module.inlined_graph


def _raised(block: Any, *, by_rank: bool) -> Iterator[str]:
    """Give the errors of a block; ``by_rank``: whether numbers of axes alone decide if it is run."""
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
    """Tell whether a value follows from constants and from numbers of axes alone."""
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
