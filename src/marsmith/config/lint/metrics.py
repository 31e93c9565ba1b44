"""Rules for ``metrics.yaml``, and the metrics that handlers write, as found in their source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith import strict_yaml
from marsmith.config.edit import Edit
from marsmith.config.lint.rules import LintResult, violation
from marsmith.errors import ConfigError
from marsmith.names import did_you_mean, nearest

# Methods of TorchServe's metrics cache, with the type of the metrics that they write.
_WRITERS = {"add_counter": "counter", "add_time": "gauge", "add_size": "gauge", "add_percent": "gauge"}
_WRITERS |= {"add_error": "counter", "add_metric": "counter"}
_TYPES = {"COUNTER": "counter", "GAUGE": "gauge", "HISTOGRAM": "histogram"}
_TYPE_ARGUMENT = "metric_type"
_UPDATE = "add_or_update"


@dataclass(frozen=True)
class WrittenMetric:
    """One metric that a handler writes.

    Attributes:
        name: name of the metric.
        type: counter, gauge or histogram; empty if the metrics file decides.
        file: the handler, or a module that it imports.
        line: counted from 1.
    """

    name: str
    type: str
    file: Path
    line: int


def written_metrics(file: Path, text: str) -> list[WrittenMetric]:
    """Return the metrics that a module writes, in order; empty if the text is not valid Python."""
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
    """Return the texts that are assigned to names at the top level of the module."""
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
    """Yield the names in a tuple ``NAMES``, as used by a module that updates declared metrics."""
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


SECTIONS = ("ts_metrics", "model_metrics")
TYPES = ("counter", "gauge", "histogram")
_TOP_KEYS = ("dimensions", *SECTIONS)
_FIELDS = ("name", "unit", "dimensions")
_PROMETHEUS_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_HOST, _LEVEL = "Hostname", "Level"
_INFERENCE = ("counter", ("model_name", "model_version", "hostname"))
# Metrics of the frontend: type and dimensions as in TorchServe's own metrics.yaml.
FRONTEND_METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{f"Requests{kind}XX": ("counter", (_LEVEL, _HOST)) for kind in (2, 4, 5)},
    "ts_inference_requests_total": _INFERENCE,
    "ts_inference_latency_microseconds": _INFERENCE,
    "ts_queue_latency_microseconds": _INFERENCE,
    **dict.fromkeys(("QueueTime", "WorkerThreadTime"), ("gauge", (_LEVEL, _HOST))),
    "WorkerLoadTime": ("gauge", ("WorkerName", _LEVEL, _HOST)),
}


@dataclass(frozen=True)
class DeclaredMetric:
    """One metric of a metrics file, with its valid parts."""

    section: str
    type: str
    name: str
    dimensions: tuple[str, ...]
    line: int


def check_metrics(path: Path, text: str, written: Iterable[WrittenMetric] = ()) -> list[LintResult]:
    """Check the text of a ``metrics.yaml``.

    Args:
        path: name of the file in findings.
        text: content of the file.
        written: the metrics that the project's handlers write.
    """
    try:
        data = strict_yaml.load_mapping(text, str(path), ConfigError)
    except ConfigError as error:
        return [violation("MS401", path, 1, problem, "correct the file") for problem in error.problems]
    problems = [*_form(path, data), *_metric_forms(path, data)]
    declared = [metric for section in SECTIONS for metric in _declared(data, section)]
    problems += [*_names(path, declared), *_frontend(path, declared), *_handlers(path, declared, written)]
    return sorted(problems, key=lambda item: (item.finding.line, item.finding.rule))


def _form(path: Path, data: Mapping[str, Any]) -> Iterator[LintResult]:
    yield from _known(path, data, _TOP_KEYS, ())
    for section in SECTIONS:
        block = data.get(section)
        if isinstance(block, Mapping):
            yield from _known(path, block, TYPES, (section,))
    if not data.get("model_metrics"):
        message = "model_metrics is missing or empty, and without it no worker starts"
        yield violation(
            "MS401", path, _line(data, "model_metrics"), message, "declare HandlerTime and PredictionTime at least"
        )


def _known(
    path: Path, block: Mapping[str, Any], known: tuple[str, ...], prefix: tuple[str, ...]
) -> Iterator[LintResult]:
    for key in block:
        if key not in known:
            right = nearest(str(key), known)
            edit = Edit("rename", (*prefix, key), right) if right and right not in block else None
            message = f"unknown key {'.'.join((*prefix, str(key)))!r}{did_you_mean(str(key), known)}"
            yield violation("MS401", path, _line(block, key), message, f"use one of {', '.join(known)}", edit)


def _metric_forms(path: Path, data: Mapping[str, Any]) -> Iterator[LintResult]:
    for section, kind, metrics in _lists(data):
        if not isinstance(metrics, list):
            yield violation("MS402", path, 1, f"{section}.{kind} is not a list", "write a list of metrics")
            continue
        for position, metric in enumerate(metrics):
            line = int(metrics.lc.item(position)[0]) + 1 if hasattr(metrics, "lc") else 1
            for problem in _metric_problems(metric):
                fix = "write name and unit as texts and dimensions as a list"
                yield violation("MS402", path, line, f"{section}.{kind}: {problem}", fix)


def _metric_problems(metric: Any) -> Iterator[str]:
    if not isinstance(metric, Mapping):
        yield f"{metric!r} is not a metric"
        return
    name = metric.get("name")
    for key in ("name", "unit"):
        if not isinstance(metric.get(key), str) or not metric[key]:
            yield f"{name or 'a metric'} has no {key}"
    dimensions = metric.get("dimensions")
    if not isinstance(dimensions, list) or not all(isinstance(item, str) for item in dimensions):
        yield f"{name or 'a metric'} has no list of dimensions"
    for key in metric:
        if key not in _FIELDS:
            yield f"{name or 'a metric'} has an unknown key {key!r}{did_you_mean(str(key), _FIELDS)}"


def _lists(data: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for section in SECTIONS:
        block = data.get(section)
        for kind in TYPES:
            if isinstance(block, Mapping) and block.get(kind) is not None:
                yield section, kind, block[kind]


def _declared(data: Mapping[str, Any], wanted: str) -> Iterator[DeclaredMetric]:
    for section, kind, metrics in _lists(data):
        if section != wanted or not isinstance(metrics, list):
            continue
        for metric in metrics:
            if not any(_metric_problems(metric)):
                dimensions = tuple(map(str, metric["dimensions"]))
                yield DeclaredMetric(section, kind, str(metric["name"]), dimensions, _line(metric, "name"))


def _names(path: Path, declared: Iterable[DeclaredMetric]) -> Iterator[LintResult]:
    seen: dict[tuple[str, str], DeclaredMetric] = {}
    for metric in declared:
        first = seen.setdefault((metric.section, metric.name), metric)
        if first is not metric:
            message = f"{metric.name} is declared already in line {first.line}"
            yield violation("MS405", path, metric.line, message, "keep one, or give one another name")
        labels = [label for label in metric.dimensions if not _LABEL.fullmatch(label)]
        if not _PROMETHEUS_NAME.fullmatch(metric.name) or labels:
            wrong = labels[0] if labels else metric.name
            fix = "use letters, digits and '_', and begin with a letter"
            yield violation("MS407", path, metric.line, f"{wrong!r} is not a valid name in Prometheus", fix)


def _frontend(path: Path, declared: Iterable[DeclaredMetric]) -> Iterator[LintResult]:
    own = {metric.name: metric for metric in declared if metric.section == "ts_metrics"}
    for name, (kind, dimensions) in FRONTEND_METRICS.items():
        metric = own.get(name)
        if metric and (metric.type, metric.dimensions) != (kind, dimensions):
            message = f"{name} must be a {kind} with the dimensions {', '.join(dimensions)}"
            yield violation("MS406", path, metric.line, message, "write it as TorchServe's own metrics.yaml does")


def _handlers(path: Path, declared: Iterable[DeclaredMetric], written: Iterable[WrittenMetric]) -> Iterator[LintResult]:
    known = {metric.name: metric for metric in declared if metric.section == "model_metrics"}
    for metric in written:
        if metric.name not in known:
            message = f"the metric {metric.name} is not declared in the model_metrics of {path.name}"
            fix = f"declare it there as a {metric.type or 'counter, gauge or histogram'}"
            yield violation("MS403", metric.file, metric.line, message, fix)
        elif metric.type and known[metric.name].type != metric.type:
            message = f"{metric.name} is written as a {metric.type} and declared as a {known[metric.name].type}"
            yield violation("MS404", metric.file, metric.line, message, f"declare it as a {metric.type}")


def _line(data: Any, key: str) -> int:
    return strict_yaml.line_of(data, key) or 1
