"""The metrics that a handler's text shows it to write through ``context.metrics``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Methods of TorchServe's metrics cache, with the type of what they write.
_WRITERS = {"add_counter": "counter", "add_time": "gauge", "add_size": "gauge", "add_percent": "gauge"}
_WRITERS |= {"add_error": "counter", "add_metric": "counter"}
_TYPES = {"COUNTER": "counter", "GAUGE": "gauge", "HISTOGRAM": "histogram"}
_TYPE_ARGUMENT = "metric_type"
_UPDATE = "add_or_update"


@dataclass(frozen=True)
class WrittenMetric:
    """One metric that a handler writes.

    Attributes:
        name: its name.
        type: counter, gauge or histogram; empty where the metrics file decides.
        file: the handler, or a module that it imports.
        line: counted from 1.
    """

    name: str
    type: str
    file: Path
    line: int


def written_metrics(file: Path, text: str) -> list[WrittenMetric]:
    """Return the metrics that a module writes, in order; none where the text is not Python."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    constants = _constants(tree)
    found = list(_calls(file, tree, constants))
    if any(isinstance(node, ast.Attribute) and node.attr == _UPDATE for node in ast.walk(tree)):
        found += _collected(file, tree, constants)
    return found


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that stand under a name at the top of the module."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _calls(file: Path, tree: ast.Module, constants: Mapping[str, str]) -> Iterator[WrittenMetric]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WRITERS):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        argument = node.args[0] if node.args else keywords.get("name")
        name = _text(argument, constants)
        if name:
            kind = keywords.get(_TYPE_ARGUMENT)
            given = _TYPES.get(kind.attr, "") if isinstance(kind, ast.Attribute) else ""
            yield WrittenMetric(name, given or _WRITERS[node.func.attr], file, node.lineno)


def _collected(file: Path, tree: ast.Module, constants: Mapping[str, str]) -> Iterator[WrittenMetric]:
    """Give the names of a tuple ``NAMES``, which a module that updates declared metrics goes through."""
    for node in tree.body:
        names = (
            [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
        if isinstance(node, ast.Assign) and "NAMES" in names and isinstance(node.value, ast.Tuple):
            for element in node.value.elts:
                name = _text(element, constants)
                if name:
                    yield WrittenMetric(name, "", file, node.lineno)


def _text(node: ast.expr | None, constants: Mapping[str, str]) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return constants.get(node.id, "") if isinstance(node, ast.Name) else ""
