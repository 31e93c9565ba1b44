"""Devices in a TorchScript graph: tracing records the device that it ran on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from marsmith.errors import ExportError
from marsmith.export.tracing.graph_checks import absent_device

_PLACE = re.compile(r'File "([^"]+)", line (\d+)')


def baked_devices(exported: torch.jit.ScriptModule, device: str) -> Iterator[tuple[str, str]]:
    """Yield what binds the graph to one device, each with a fix.

    Moving a tensor to a named device always does. Creating one there does only if the export is for another ``device``.
    """
    for node in _nodes(exported.inlined_graph):
        baked = [one.toIValue() for one in node.inputs() if one.node().kind() == "prim::Constant"]
        for value in baked:
            if isinstance(value, torch.device) and node.kind() in ("aten::to", "aten::_to_copy"):
                yield (
                    f"{_place_of(node)}a tensor is moved to {str(value)!r} whatever device it runs on",
                    "leave out .to(device) and .cpu(): the whole module is on one device; or export.method: script",
                )
            elif isinstance(value, torch.device) and value.type != torch.device(device).type:
                yield (
                    f"{_place_of(node)}{node.kind()} makes a tensor on {str(value)!r}; the export is for {device!r}",
                    "write torch.zeros(..., device=x.device) and export.method: script, or x.new_zeros(...)",
                )


def absent_device_problem(module: torch.jit.ScriptModule, path: Path) -> ExportError | None:
    """Return the error for a file that names a device that this machine lacks; None if it does not."""
    absent = absent_device(module)
    if absent is None:
        return None
    device, node = absent
    return ExportError(
        f"{path} computes on {device!r} whatever it is given, and this machine has no such device:"
        f" {_place_of(node)}{node.kind()}",
        tip="make the file again on the CPU: module.cpu() and inputs.cpu() before torch.jit.trace, no .to('cuda') and"
        " no device='cuda' in forward(); map_location moves weights, and not what the code names",
    )


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


def _place_of(node: Any) -> str:
    text = str(node.sourceRange())
    if places := _PLACE.findall(text):
        file, line = places[-1]
        return f"{file}:{line}: "
    lines = [line for line in text.splitlines() if ".py" in line]
    return f"{lines[-1].strip()}: " if lines else ""
