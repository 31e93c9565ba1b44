"""Rules for the form of ``config.properties``: keys, types, ranges, addresses, paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from marsmith.config.edit import Edit
from marsmith.config.lint.rules import LintResult, violation
from marsmith.config.lint.security import OPENING_KEYS, check_security
from marsmith.config.lint.server_file import ServerFile, listener_at
from marsmith.config.properties import Entry, parse_properties
from marsmith.config.server_config import log_config
from marsmith.config.server_keys import KEY_TYPES, KNOWN_KEYS, LARGEST_PORT, PATH_KEYS, is_true, number
from marsmith.errors import ConfigError
from marsmith.json_reader import read_json
from marsmith.names import did_you_mean, nearest

_REFERENCE = re.compile(r"\$\$([^$]+)\$\$")
_TRUTH = {
    "yes": "true",
    "on": "true",
    "1": "true",
    "y": "true",
    "no": "false",
    "off": "false",
    "0": "false",
    "n": "false",
}
# Keys of a version in the JSON of `models` that TorchServe reads (Model.java).
_MODELS_KEYS = frozenset(
    [
        "minWorkers",
        "maxWorkers",
        "batchSize",
        "maxBatchDelay",
        "responseTimeout",
        "startupTimeout",
        "defaultVersion",
        "marName",
        "runtimeType",
        "parallelLevel",
    ]
)
_SMALLEST_REPLY = 65536


def check_server_config(path: Path, text: str, environment: Mapping[str, str] | None = None) -> list[LintResult]:
    """Check the text of a ``config.properties``; paths are relative to its folder."""
    try:
        entries = parse_properties(text, str(path))
    except ConfigError as error:
        return [violation("MS108", path, _line(problem), problem, "fix the line") for problem in error.problems]
    seen = os.environ if environment is None else environment
    file = ServerFile(path, path.resolve().parent, tuple(entries), seen)
    rules = (_keys, _white_space, _values, _addresses, _references, _paths, _models_json, _settings, check_security)
    results = [item for rule in rules for item in rule(file)]
    return sorted(results, key=lambda item: (item.finding.line, item.finding.rule))


def _line(problem: str) -> int:
    match = re.match(r"line (\d+)", problem)
    return int(match[1]) if match else 1


def _keys(file: ServerFile) -> Iterator[LintResult]:
    for entry in file.entries:
        if entry.key not in KNOWN_KEYS:
            right = nearest(entry.key, KNOWN_KEYS)
            safe = right and right not in file.last and right not in OPENING_KEYS
            edit = Edit("rename", (entry.key,), right, entry.line) if safe else None
            message = f"unknown key {entry.key!r}{did_you_mean(entry.key, KNOWN_KEYS)}"
            fix = f"write {right}" if right else "remove the line"
            yield violation("MS101", file.path, entry.line, message, fix, edit)
        elif file.last[entry.key] is not entry:
            counts = file.last[entry.key].line
            message = f"{entry.key} occurs again in line {counts}, and that line counts"
            yield violation(
                "MS102", file.path, entry.line, message, "keep one", Edit("remove", (entry.key,), line=entry.line)
            )


def _white_space(file: ServerFile) -> Iterator[LintResult]:
    for entry in file.entries:
        if entry.value != entry.value.rstrip():
            right = entry.value.rstrip()
            safe = entry.key not in OPENING_KEYS or right == "false"
            edit = Edit("set", (entry.key,), right, entry.line) if safe else None
            message = f"the value of {entry.key} ends in white space, and TorchServe keeps it"
            yield violation("MS103", file.path, entry.line, message, "remove it", edit)


def _values(file: ServerFile) -> Iterator[LintResult]:
    for entry in file.last.values():
        kind = KEY_TYPES[entry.key].kind if entry.key in KEY_TYPES else "text"
        if "$$" in entry.value or entry.value != entry.value.rstrip():
            continue
        if kind == "boolean":
            yield from _truth_value(file, entry)
        elif kind in {"integer", "port", "decimal"}:
            yield from _number(file, entry)


def _truth_value(file: ServerFile, entry: Entry) -> Iterator[LintResult]:
    if entry.value.lower() in {"true", "false"}:
        return
    meant = _TRUTH.get(entry.value.lower())
    safe = meant == "false" or (meant and entry.key not in OPENING_KEYS)
    edit = Edit("set", (entry.key,), meant, entry.line) if safe else None
    message = f"{entry.key} is {entry.value!r}, which TorchServe reads as false"
    yield violation("MS104", file.path, entry.line, message, f"write {meant or 'true or false'}", edit)


def _number(file: ServerFile, entry: Entry) -> Iterator[LintResult]:
    key = KEY_TYPES[entry.key]
    value = _decimal(entry.value) if key.kind == "decimal" else number(entry.value)
    if value is None:
        what = "a number" if key.kind == "decimal" else "a whole number below 2^31"
        yield violation("MS104", file.path, entry.line, f"{entry.key} is {entry.value!r}, not {what}", f"write {what}")
    elif value < key.lowest or (key.kind == "decimal" and value <= 0):
        fix = f"write at least {max(1, key.lowest)}"
        yield violation("MS105", file.path, entry.line, f"{entry.key} is {entry.value}, which is too small", fix)
    elif key.kind == "port" and value > LARGEST_PORT:
        yield violation(
            "MS105", file.path, entry.line, f"{entry.key} is {entry.value}, not a port", "write 1024 to 65534"
        )


def _decimal(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _addresses(file: ServerFile) -> Iterator[LintResult]:
    for key in ("inference_address", "management_address", "metrics_address"):
        if key in file.last and "$$" not in file.value(key):
            listener = listener_at(key, file.value(key).rstrip())
            if listener is None or listener.port > LARGEST_PORT:
                message = f"{key} is {file.value(key)!r}, which TorchServe does not accept as an address"
                yield violation(
                    "MS106", file.path, file.line(key), message, "write http://HOST:PORT and nothing after it"
                )
    seen: dict[tuple[str, int], str] = {}
    for listener in file.listeners.values():
        place = (listener.host.lower(), listener.port)
        other = seen.setdefault(place, listener.key)
        # The REST APIs may share a port: the frontend then starts one server for them.
        if listener.port and other != listener.key and (listener.key.startswith("grpc") or other.startswith("grpc")):
            message = f"{other} and {listener.key} are both port {listener.port}"
            yield violation("MS107", file.path, file.line(listener.key), message, "give each a port of its own")


def _references(file: ServerFile) -> Iterator[LintResult]:
    for entry in file.entries:
        for name in _REFERENCE.findall(entry.value):
            if name not in file.environment:
                message = f"{entry.key} needs the environment variable {name}, which is not set"
                yield violation("MS126", file.path, entry.line, message, f"set {name} where the server starts")


def _paths(file: ServerFile) -> Iterator[LintResult]:
    for key in sorted(PATH_KEYS & file.last.keys()):
        yield from _existing(file, key, file.value(key).partition("*")[0])
    if "vmargs" in file.last:
        named = log_config(file.value("vmargs"), file.root)
        if named:
            yield from _existing(file, "vmargs", str(named))


def _existing(file: ServerFile, key: str, value: str) -> Iterator[LintResult]:
    if value and "$$" not in value and not (file.root / value.rstrip()).exists():
        message = f"{key} names {value.rstrip()}, which does not exist"
        yield violation(
            "MS125",
            file.path,
            file.line(key),
            message,
            "create it, or correct the path (relative to the file's folder)",
        )


def _models_json(file: ServerFile) -> Iterator[LintResult]:
    if "models" not in file.last:
        return
    line = file.line("models")
    try:
        parsed = read_json(file.value("models"))
        versions = [
            (name, number, keys) for name, per_version in parsed.items() for number, keys in per_version.items()
        ]
        named = [(f"{name}:{number}", key, value) for name, number, keys in versions for key, value in keys.items()]
    except (ValueError, AttributeError):
        fix = 'write {"name": {"version": {"minWorkers": 1, ...}}}'
        yield violation("MS128", file.path, line, "models is not JSON of names, versions and keys", fix)
        return
    for version, key, value in named:
        if key not in _MODELS_KEYS:
            message = f"models: unknown key {key!r} of {version}{did_you_mean(key, _MODELS_KEYS)}"
            yield violation("MS128", file.path, line, message, f"use one of {', '.join(sorted(_MODELS_KEYS))}")
        elif key.endswith(("Workers", "Size", "Delay", "Timeout")) and not (type(value) is int and value > 0):
            message = f"models: {key} of {version} is {value!r}, and TorchServe uses its default instead"
            yield violation("MS128", file.path, line, message, "write a whole number above 0")


def _settings(file: ServerFile) -> Iterator[LintResult]:
    """Check keys whose values are valid but have another effect than expected."""
    if file.is_true("async_logging"):
        fix = "set -Dlog4j2.contextSelector=... in vmargs instead"
        yield violation("MS117", file.path, file.line("async_logging"), "async_logging has no effect in 0.12.0", fix)
    if re.sub(r"\s", "", file.value("metrics_mode")).lower() not in {"prometheus", "legacy"}:
        edit = Edit(
            "set", ("metrics_mode",), "prometheus", file.line("metrics_mode") if "metrics_mode" in file.last else 0
        )
        message = f"metrics_mode is {file.value('metrics_mode')!r}: the metrics API is empty"
        yield violation("MS118", file.path, file.line("metrics_mode"), message, "write metrics_mode=prometheus", edit)
    size = number(file.value("max_response_size"))
    if size is not None and 0 < size < _SMALLEST_REPLY:
        message = f"max_response_size is {size} bytes"
        fix = "write at least 65536; TorchServe's default is 6553500"
        yield violation("MS121", file.path, file.line("max_response_size"), message, fix)
    if number(file.value("default_workers_per_model")) == 0 and not is_true(file.value("debug")):
        message = "default_workers_per_model is not set, so a model without its own workers gets one a core"
        fix = "write default_workers_per_model=1"
        line = file.line("default_workers_per_model")
        edit = Edit("set", ("default_workers_per_model",), "1", line if "default_workers_per_model" in file.last else 0)
        yield violation("MS123", file.path, line, message, fix, edit)
    if "model_snapshot" in file.last and "load_models" in file.last:
        message = "model_snapshot is set, so load_models is not read"
        yield violation("MS124", file.path, file.line("load_models"), message, "remove one of the two")
