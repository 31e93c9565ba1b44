"""Rules for model specs, ``config/models/<name>.yaml``, and for the names of models and versions in URLs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from marsmith import strict_yaml
from marsmith.config.edit import Edit
from marsmith.config.lint.model_config import ModelKeys, check_version_keys
from marsmith.config.lint.problems import CheckedFile, format_problem
from marsmith.config.lint.rules import LintResult, violation
from marsmith.config.model_spec import ModelSpec, parse_model_spec
from marsmith.config.source_names import RecipeSource, weights_file
from marsmith.errors import ExportError, SpecError, UsageError
from marsmith.names import check_model_name, check_model_version

_TOKEN = "token"  # noqa: S105, the name of an API


def check_names(path: Path, name: str, version: str, name_line: int, version_line: int) -> Iterator[LintResult]:
    """Check a model's name and version; lines are counted from 1."""
    for what, text, line in (("model name", name, name_line), ("version", version, version_line)):
        if text.startswith(_TOKEN):
            message = f"the {what} {text!r} puts /token into management URLs, which then go to the token API"
            yield violation("MS601", path, line, message, f"begin the {what} with another word")
    for rule, check, text, line in (
        ("MS603", check_model_name, name, name_line),
        ("MS604", check_model_version, version, version_line),
    ):
        try:
            check(text)
        except UsageError as error:
            yield violation(rule, path, line, error.message, error.tip or "")
    if version == "all":
        message = "a version called 'all' cannot be described alone: /models/NAME/all means every version"
        yield violation("MS602", path, version_line, message, "give it another name")


_SERVING = "serving"
_FIX = "see docs/reference/model-spec.md"
# Maximum share of the 99th percentile for the wait for a batch.
_DELAY_SHARE = 0.2


def check_spec(path: Path, text: str, root: Path, cores: int, queue_size: int = 100) -> list[LintResult]:
    """Check the text of a model spec.

    Args:
        path: name of the file in findings.
        text: content of the file.
        root: the project's root; paths in the spec are relative to it.
        cores: processor cores of the machine that serves.
        queue_size: job_queue_size of the server config, for a spec without its own.
    """
    try:
        data = strict_yaml.load_mapping(text, str(path), SpecError)
    except SpecError as error:
        return [format_problem("MS301", _file(path, text), problem, _FIX) for problem in error.problems]
    version = list(_unquoted_version(path, text, data))
    try:
        spec = parse_model_spec(text, str(path))
    except SpecError as error:
        problems = [problem for problem in error.problems if not (version and ": version:" in f": {problem}")]
        return [*version, *(format_problem("MS301", _file(path, text, data), each, _FIX) for each in problems)]
    keys = ModelKeys(path, _block(data, _SERVING), (_SERVING,))
    rules = (
        check_names(path, spec.name, spec.version, _line(data, "name"), _line(data, "version")),
        _file_name(path, spec, data),
        _files(path, spec, data, root),
        check_version_keys(keys, cores),
        _service_level(path, spec, data, queue_size),
    )
    return sorted((item for rule in rules for item in rule), key=lambda item: (item.finding.line, item.finding.rule))


def _file(path: Path, text: str, data: Mapping[str, Any] | None = None) -> CheckedFile:
    return CheckedFile(path, text, data or {}, parse_model_spec)


def _unquoted_version(path: Path, text: str, data: Mapping[str, Any]) -> Iterator[LintResult]:
    if "version" not in data or isinstance(data["version"], str):
        return
    raw = next((value.value for key, value in YAML().compose(text).value if key.value == "version"), None)
    if isinstance(raw, str) and raw:
        message = f"version {raw} is a number in YAML"
        edit = Edit("set", ("version",), raw)
        yield violation("MS309", path, _line(data, "version"), message, f'write version: "{raw}"', edit)


def _file_name(path: Path, spec: ModelSpec, data: Mapping[str, Any]) -> Iterator[LintResult]:
    if path.stem != spec.name:
        message = f"the spec of {spec.name!r} is in {path.name}"
        yield violation("MS305", path, _line(data, "name"), message, f"call the file {spec.name}.yaml")


def _files(path: Path, spec: ModelSpec, data: Mapping[str, Any], root: Path) -> Iterator[LintResult]:
    export, handler = _block(data, "export"), _block(data, "handler")
    named: list[tuple[str, Path, int]] = []
    try:
        recipe = RecipeSource.parse(spec.export.recipe).path
        named += [(recipe, root / recipe, _line(export, "recipe"))] if recipe else []
    except ExportError as error:
        yield violation("MS301", path, _line(export, "recipe"), error.message, error.tip or "correct the recipe")
    weights = weights_file(spec.export.weights, root)
    named += [(spec.export.weights, weights.path, _line(export, "weights"))] if weights else []
    named.append((spec.handler.entry_point, root / spec.handler.entry_point, _line(handler, "entry_point")))
    named += [(name, root / name, _line(handler, "extra_files")) for name in spec.handler.extra_files]
    inputs = [example.input for example in spec.examples if not example.input.startswith("package:")]
    named += [(name, root / name, _line(data, "examples")) for name in inputs]
    for name, file, line in named:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            yield violation(
                "MS306", path, line, f"{name} {what} in {root}", "correct the path (relative to the project's root)"
            )
    if not spec.examples:
        message = "the spec has no examples"
        yield violation("MS307", path, 1, message, "name at least one request, with its expected top label")


def _service_level(path: Path, spec: ModelSpec, data: Mapping[str, Any], queue_size: int) -> Iterator[LintResult]:
    level, serving = spec.service_level, spec.serving
    if level is None:
        return
    block = _block(data, _SERVING)
    p99_s = level.p99_ms / 1000
    queue = serving.job_queue_size or queue_size
    line = _line(block, "jobQueueSize") if "jobQueueSize" in block else _line(data, "service_level")
    if serving.batch_size > 1 and serving.max_batch_delay_ms > _DELAY_SHARE * level.p99_ms:
        message = f"maxBatchDelay of {serving.max_batch_delay_ms} ms of a 99th percentile of {level.p99_ms:g} ms"
        fix = f"write at most {max(1, int(_DELAY_SHARE * level.p99_ms))}"
        yield violation("MS302", path, _line(block, "maxBatchDelay"), message, fix)
    needed = level.requests_per_second * p99_s
    if queue < needed:
        message = (
            f"{level.requests_per_second:g} requests per second within {level.p99_ms:g} ms are {needed:.0f} at a time"
        )
        fix = f"write jobQueueSize: {int(needed) + 1} or more; it is {queue}"
        yield violation("MS303", path, line, message, fix)
    drained_s = queue / level.requests_per_second
    if drained_s > serving.response_timeout_s:
        message = f"a queue of {queue} takes {drained_s:.0f} s at {level.requests_per_second:g} requests per second"
        fix = f"write jobQueueSize: {int(level.requests_per_second * serving.response_timeout_s)} or less"
        yield violation("MS304", path, line, message, fix)
    if serving.response_timeout_s < p99_s:
        message = (
            f"responseTimeout of {serving.response_timeout_s} s is below the 99th percentile of {level.p99_ms:g} ms"
        )
        yield violation("MS308", path, _line(block, "responseTimeout"), message, f"write at least {int(p99_s) + 1}")


def _block(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    block = data.get(key)
    return block if isinstance(block, Mapping) else {}


def _line(data: Mapping[str, Any], key: str) -> int:
    return strict_yaml.line_of(data, key) or 1
