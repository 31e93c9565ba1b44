"""Rules for ``model-config.yaml``, and for the block ``serving`` of a model spec, which has the same keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from ruamel.yaml.scalarbool import ScalarBoolean

from marsmith import strict_yaml
from marsmith.bounded_yaml import YamlMapping
from marsmith.config.edit import Edit
from marsmith.config.lint.rules import LintResult, violation
from marsmith.config.model_config import HANDLER_KEY
from marsmith.errors import ConfigError
from marsmith.names import nearest

Kind = type[int] | type[bool] | type[str] | type[list[Any]] | type[dict[str, Any]]

# Types in ModelConfig.java, and the smallest valid value of numbers.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        [
            "minWorkers",
            "maxWorkers",
            "batchSize",
            "maxBatchDelay",
            "responseTimeout",
            "startupTimeout",
            "jobQueueSize",
            "maxRetryTimeoutInSec",
            "clientTimeoutInMills",
            "parallelLevel",
            "sequenceMaxIdleMSec",
            "sequenceTimeoutMSec",
            "maxSequenceJobQueueSize",
            "maxNumSequence",
        ],
        int,
    ),
    **dict.fromkeys(
        ("useJobTicket", "sequenceBatching", "continuousBatching", "asyncCommunication", "useVenv"),
        bool,
    ),
    "deviceType": str,
    "parallelType": str,
    "deviceIds": list,
    "torchrun": dict,
}
LOWEST = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 1,
    "responseTimeout": 1,
    "startupTimeout": 1,
    "jobQueueSize": 1,
    # With 0 the queues of sequences cannot be created, which ends the server.
    "maxNumSequence": 1,
    "maxSequenceJobQueueSize": 1,
}
# ModelConfig.java requires an Integer; SnakeYAML makes a Long of a larger number.
MIN_JAVA_INTEGER, MAX_JAVA_INTEGER = -(1 << 31), (1 << 31) - 1
_PLACE = re.compile(r"line (?P<line>\d+): ")
_CHOICES = {"deviceType": ("cpu", "gpu", "neuron"), "parallelType": ("pp", "tp", "pptp", "custom")}
_WORDS = {int: "a whole number", bool: "true or false", str: "a text", list: "a list", dict: "a mapping"}
_TIMEOUTS = {"responseTimeout": 120, "startupTimeout": 120}
# Far above 1 ms, which was best at every load tried, and far below a noticeable delay.
_COSTLY_MS = 10
_SEQUENCE_KEYS = ("sequenceTimeoutMSec", "maxSequenceJobQueueSize", "maxNumSequence")
# Similarity (0 to 1) to one of TorchServe's keys above which another key counts as a mistake.
_SURELY_MEANT = 0.8
_TRUTH = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class ModelKeys:
    """TorchServe's keys of one version, with their lines.

    Attributes:
        path: the file.
        data: mapping with the keys and their line numbers.
        prefix: keys that lead to the mapping; empty in a model-config.yaml.
    """

    path: Path
    data: Mapping[str, Any]
    prefix: tuple[str, ...] = ()

    def line(self, key: str) -> int:
        """Return the line of a key, or of the mapping if the key is missing."""
        line = strict_yaml.line_of(self.data, key)
        marks = getattr(self.data, "lc", None)
        if line is None and self.prefix and marks is not None:
            # A nested mapping begins in the line after its own key.
            return int(marks.line) + 1
        return line or 1

    def integer(self, key: str) -> int | None:
        """Return a whole number; None if it is missing or of another type."""
        value = self.data.get(key)
        return int(value) if _is_whole(value) else None

    def violation(self, rule: str, key: str, message: str, fix: str, edit: Edit | None = None) -> LintResult:
        """Create a result at a key."""
        return violation(rule, self.path, self.line(key), message, fix, edit)

    def set(self, key: str, value: Any) -> Edit:
        """Create the edit that sets a key."""
        return Edit("set", (*self.prefix, key), value)


def check_model_config(path: Path, text: str, cores: int) -> list[LintResult]:
    """Check the text of a ``model-config.yaml``.

    Args:
        path: name of the file in findings.
        text: content of the file.
        cores: processor cores of the machine that serves.
    """
    if not text.strip():
        return [violation("MS205", path, 1, "the model config is empty", "write the keys, or leave the file out")]
    try:
        data = strict_yaml.load_model_config(text, str(path), ConfigError)
    except ConfigError as error:
        return [_unreadable(path, problem) for problem in error.problems]
    keys = ModelKeys(path, data)
    rules = (_repeated(path, data), _unknown(keys), _types(keys), check_version_keys(keys, cores), _missing(keys))
    return sorted((item for rule in rules for item in rule), key=lambda item: (item.finding.line, item.finding.rule))


def require_sound(text: str, source: str) -> None:
    """Refuse a model config with errors: TorchServe ignores such keys, or ends with all its models.

    Raises:
        ConfigError: there are errors; the message lists all of them with their lines.
    """
    findings = [item.finding for item in check_model_config(Path(source), text, cores=1)]
    wrong = [finding for finding in findings if finding.severity == "error"]
    if wrong:
        problems = [f"line {each.line}: {each.message}" for each in wrong]
        raise ConfigError(source, problems, tip=f"{wrong[0].fix}; marsmith lint FILE shows more")


def check_version_keys(keys: ModelKeys, cores: int) -> Iterator[LintResult]:
    """Check combinations of keys, for a model config and for a spec."""
    yield from _batching(keys)
    yield from _workers(keys, cores)
    yield from _devices(keys)
    yield from _sequences(keys)


def _unreadable(path: Path, problem: str) -> LintResult:
    match = _PLACE.match(problem)
    line = int(match["line"]) if match else 1
    return violation("MS205", path, line, problem[match.end() :] if match else problem, "correct the file")


def _repeated(path: Path, data: YamlMapping) -> Iterator[LintResult]:
    for key, line in data.repeated:
        message = f"{key} occurs twice, and line {data.lines[key]} counts"
        yield violation("MS218", path, line, message, "remove one of the two")


def _unknown(keys: ModelKeys) -> Iterator[LintResult]:
    for key, value in keys.data.items():
        # A nested block belongs to the handler, whatever its name: none of TorchServe's keys is a block, except
        # torchrun.
        if key in KINDS or isinstance(value, Mapping):
            continue
        right = _likely(str(key), value)
        if right:
            edit = Edit("rename", (key,), right) if right not in keys.data else None
            message = f"unknown key {key!r}; did you mean {right!r}?"
            yield keys.violation("MS201", key, message, f"write {right}", edit)
        else:
            message = f"TorchServe does not read {key!r}; the handler may, through context.model_yaml_config"
            yield keys.violation(
                "MS202", key, message, "put what the handler reads into a block of its own, as `handler:`"
            )


def _likely(key: str, value: Any) -> str | None:
    """Return the key of TorchServe's that was probably intended, also in the spelling of the server config or the API.

    Only a key that can have the value is returned, because a key that is only slightly similar may be the handler's.
    """
    joined = {known.lower(): known for known in KINDS}
    folded = key.replace("_", "").replace("-", "").lower()
    right = joined.get(folded) or nearest(folded, KINDS, cutoff=_SURELY_MEANT)
    return right if right and _fits(right, value) else None


def _fits(key: str, value: Any) -> bool:
    if key in _CHOICES and str(value).lower() not in _CHOICES[key]:
        return False
    return _is(value, KINDS[key]) or _converted(value, KINDS[key]) is not None


def _is(value: Any, kind: Kind) -> bool:
    return _is_whole(value) if kind is int else isinstance(value, kind)


def _is_whole(value: Any) -> TypeGuard[int]:
    """Return whether a value is a whole number, including the parser's own types, which keep the notation."""
    return isinstance(value, int) and not isinstance(value, bool | ScalarBoolean)


def _types(keys: ModelKeys) -> Iterator[LintResult]:
    for key, kind in KINDS.items():
        value = keys.data.get(key)
        if key not in keys.data:
            continue
        if not _is(value, kind):
            right = _converted(value, kind)
            edit = None if right is None else keys.set(key, right)
            message = f"{key} is {value!r}, not {_WORDS[kind]}, so TorchServe uses its default"
            yield keys.violation("MS203", key, message, f"write {_WORDS[kind]}", edit)
        elif kind is int and isinstance(value, int) and not MIN_JAVA_INTEGER <= value <= MAX_JAVA_INTEGER:
            message = f"{key} is {value}, which is too large a number for TorchServe, so it uses its default"
            yield keys.violation("MS203", key, message, f"write at most {MAX_JAVA_INTEGER}")
        elif isinstance(value, int) and kind is int and value < LOWEST.get(key, 0):
            yield keys.violation("MS204", key, f"{key} is {value}", f"write at least {LOWEST.get(key, 0)}")
        elif key in _CHOICES and str(value).lower() not in _CHOICES[key]:
            yield keys.violation("MS204", key, f"{key} is {value!r}", f"write one of {', '.join(_CHOICES[key])}")


def _converted(value: Any, kind: Kind) -> Any:
    """Return the only possible meaning of a value of the wrong type; None if there are several."""
    if kind is int and isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is bool and isinstance(value, str):
        return _TRUTH.get(value.lower())
    if kind is list and _is_whole(value):
        return [value]
    return None


def _batching(keys: ModelKeys) -> Iterator[LintResult]:
    batch, delay = keys.integer("batchSize"), keys.integer("maxBatchDelay")
    if delay == 0:
        message = "maxBatchDelay is 0, which TorchServe treats as 100 ms"
        yield keys.violation("MS207", "maxBatchDelay", message, "write 1", keys.set("maxBatchDelay", 1))
    elif "maxBatchDelay" not in keys.data and (batch or 1) > 1 and not keys.prefix:
        message = f"batchSize is {batch} without a maxBatchDelay, which is then 100 ms"
        yield keys.violation("MS207", "batchSize", message, "write maxBatchDelay: 1, near greedy, or what you measured")
    if delay is None or delay < 1:
        return
    timeout = keys.integer("responseTimeout")
    if batch == 1 and delay > 1:
        message = f"maxBatchDelay is {delay} ms, and a batch of 1 never waits"
        yield keys.violation("MS208", "maxBatchDelay", message, "raise batchSize, or write maxBatchDelay: 1")
    elif timeout and delay >= timeout * 1000:
        message = f"maxBatchDelay of {delay} ms is not below the responseTimeout of {timeout} s"
        yield keys.violation("MS215", "maxBatchDelay", message, "write maxBatchDelay in milliseconds, near 1")
    elif delay > _COSTLY_MS and batch != 1:
        message = f"maxBatchDelay is {delay} ms: alone, a client gets at most {1000 / delay:.0f} replies a second"
        yield keys.violation(
            "MS216", "maxBatchDelay", message, "write 1: under load batches form while workers are busy"
        )


def _workers(keys: ModelKeys, cores: int) -> Iterator[LintResult]:
    least, most = keys.integer("minWorkers"), keys.integer("maxWorkers")
    if least is not None and (most or 0) < max(1, least):
        message = f"minWorkers is {least} and maxWorkers is {most if most is not None else 'missing'}: both are ignored"
        ignored = keys.violation("MS209", "minWorkers", message, "write maxWorkers, at least minWorkers")
        # Without the other key its default counts, and there is no contradiction.
        yield ignored if most is not None else replace(ignored, finding=replace(ignored.finding, severity="warning"))
        return
    workers = most or 1
    handler = keys.data.get(HANDLER_KEY)
    threads = handler.get("threads") if isinstance(handler, Mapping) else None
    each = threads if _is_whole(threads) and threads > 0 else 1
    if workers > 1 and workers * each > cores and str(keys.data.get("deviceType", "")).lower() != "gpu":
        message = f"{workers} workers of at least {each} thread(s) on {cores} cores"
        yield keys.violation("MS211", "maxWorkers", message, f"write at most {max(1, cores // each)} workers")


def _devices(keys: ModelKeys) -> Iterator[LintResult]:
    ids = keys.data.get("deviceIds")
    if isinstance(ids, list):
        wrong = [item for item in ids if not _is_whole(item) or item < 0]
        if wrong:
            named = ", ".join(repr(item) for item in wrong)
            message = f"deviceIds has {named}, and so TorchServe ignores all of {list(ids)}"
            yield keys.violation("MS213", "deviceIds", message, "write numbers of GPUs, from 0 on")
        elif str(keys.data.get("deviceType", "")).lower() == "cpu":
            yield keys.violation("MS213", "deviceIds", "deviceIds beside deviceType cpu", "remove one of the two")
    parallel, level = keys.data.get("parallelType"), keys.integer("parallelLevel")
    if (parallel is None) != (not level) and "torchrun" not in keys.data:
        key = "parallelLevel" if parallel is None else "parallelType"
        yield keys.violation("MS214", key, f"{key} alone is ignored", "write both parallelType and parallelLevel")


def _sequences(keys: ModelKeys) -> Iterator[LintResult]:
    given = [key for key in _SEQUENCE_KEYS if key in keys.data]
    complete = keys.data.get("sequenceBatching") is True and (keys.integer("sequenceMaxIdleMSec") or 0) > 0
    if given and not complete and keys.data.get("continuousBatching") is not True:
        message = f"{', '.join(given)}: ignored without sequenceBatching: true and a sequenceMaxIdleMSec above 0"
        yield keys.violation("MS217", given[0], message, "write both, or remove these")


def _missing(keys: ModelKeys) -> Iterator[LintResult]:
    """Check for missing keys with dangerous defaults; a spec always writes all of them."""
    for key, default in _TIMEOUTS.items():
        if key not in keys.data:
            message = f"{key} is missing, so it is {default} s, whatever config.properties and the API say"
            yield keys.violation("MS206", key, message, f"write {key}", keys.set(key, default))
    if "minWorkers" not in keys.data:
        message = "minWorkers and maxWorkers are missing, so default_workers_per_model decides, or the cores"
        yield keys.violation("MS210", "minWorkers", message, "write both")
    if (keys.integer("maxRetryTimeoutInSec") or 300) >= 300:
        message = "/ping treats a dead worker as healthy for 300 s (maxRetryTimeoutInSec)"
        yield keys.violation("MS212", "maxRetryTimeoutInSec", message, "write maxRetryTimeoutInSec: 30")
