"""YAML as a bounded stream of events, and as TorchServe reads it.

TorchServe's frontend reads a model config with SnakeYAML 2, which is YAML 1.1: ``010`` is 8, ``1:30`` is 90, ``yes`` is
true, ``<<`` merges, and if a key occurs twice, the last one counts. Its bounds are 50 levels below the top, and 50
aliases of lists and mappings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

MAX_CHARACTERS = 1 << 18
MAX_NODES = 20_000
MAX_DEPTH = 51
MAX_ALIASES = 50

# Copied from SnakeYAML's Resolver.
_BOOL = re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
_TRUE = frozenset({"yes", "true", "on"})
_FLOAT = re.compile(
    r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_INT = re.compile(
    r"[-+]?0b_*[0-1][0-1_]*|[-+]?0_*[0-7][0-7_]*|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x_*[0-9a-fA-F][0-9a-fA-F_]*"
    r"|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+"
)
_NULL = re.compile(r"~|null|Null|NULL| |")
_KINDS = {"int": int, "float": float, "bool": bool, "null": type(None)}
_TAG = "tag:yaml.org,2002:"


class YamlProblemError(Exception):
    """A text that is not YAML, or exceeds the bounds.

    Attributes:
        reason: the problem, in one line.
        line: line of the problem, counted from 1; None if it is unknown.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


class YamlMapping(dict[Any, Any]):
    """A mapping with the line of each key, and the repeated keys with the line of the lost one."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[Any, int] = {}
        self.line = 1
        self.repeated: list[tuple[Any, int]] = []


def bounded_events(text: str, version: str) -> Iterator[Event]:
    """Yield the events of one document.

    Raises YamlProblemError as soon as a bound is exceeded, so that time is bounded.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlProblemError(f"longer than {MAX_CHARACTERS:,} characters")
    yaml = YAML(typ="safe", pure=True)
    yaml.version = version
    bounds = _Bounds()
    with parser_problems():
        for event in yaml.parse(StringIO(text)):
            bounds.check(event)
            yield event


@contextmanager
def parser_problems() -> Iterator[None]:
    """Convert exceptions of the parser into YamlProblemError, including its own faults on broken texts."""
    try:
        yield
    except MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        reason = str(problem.problem or problem.context).splitlines()[0]
        raise YamlProblemError(f"not valid YAML: {reason}", mark.line + 1 if mark else None) from None
    except YAMLError as problem:
        raise YamlProblemError(f"not valid YAML: {str(problem).splitlines()[0]}") from None
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError) as problem:
        raise YamlProblemError(f"not valid YAML: {problem!r}") from None


def read_as_torchserve(text: str) -> Any:
    """Read a text as TorchServe's frontend does: mappings as YamlMapping, lists, and Python's scalars.

    Raises:
        YamlProblemError: TorchServe could not read it either, or would take very long.
    """
    return _Builder(bounded_events(text, "1.1")).document()


@dataclass
class _Bounds:
    """Size of a text so far, with every alias counted as if it were written out.

    Attributes:
        nodes: number of values in the text.
        documents: number of documents.
        aliases: number of aliases of lists and mappings.
        open: anchor and number of values of each open list or mapping, the innermost last.
        weights: number of values of each anchor.
        collections: anchors of lists and mappings.
    """

    nodes: int = 0
    documents: int = 0
    aliases: int = 0
    open: list[tuple[str | None, int]] = field(default_factory=lambda: [(None, 0)])
    weights: dict[str, int] = field(default_factory=dict)
    collections: set[str] = field(default_factory=set)

    def check(self, event: Any) -> None:
        """Count the next event; raise YamlProblemError if it exceeds a bound."""
        self.nodes += isinstance(event, NodeEvent)
        self.documents += isinstance(event, DocumentStartEvent)
        if isinstance(event, CollectionStartEvent):
            self.open.append((event.anchor, 1))
        elif isinstance(event, CollectionEndEvent):
            self._closed(*self.open.pop())
        elif isinstance(event, NodeEvent):
            self._add(self._weight(event))
        self._refuse(event.start_mark.line + 1)

    def _weight(self, event: Any) -> int:
        if not isinstance(event, AliasEvent):
            if event.anchor:
                self.weights[event.anchor] = 1
                self.collections.discard(event.anchor)
            return 1
        if any(event.anchor == anchor for anchor, _ in self.open):
            raise YamlProblemError(f"the alias {event.anchor!r} is inside its own anchor", event.start_mark.line + 1)
        self.aliases += event.anchor in self.collections
        return self.weights.get(event.anchor, 1)

    def _closed(self, anchor: str | None, weight: int) -> None:
        if anchor:
            self.weights[anchor] = weight
            self.collections.add(anchor)
        self._add(weight)

    def _add(self, weight: int) -> None:
        anchor, before = self.open[-1]
        self.open[-1] = (anchor, before + weight)

    def _refuse(self, line: int) -> None:
        if self.nodes > MAX_NODES or self.open[-1][1] > MAX_NODES:
            raise YamlProblemError(f"more than {MAX_NODES:,} values, with its aliases written out", line)
        if len(self.open) - 1 > MAX_DEPTH:
            raise YamlProblemError(f"nested more than {MAX_DEPTH - 1} levels deep", line)
        if self.aliases > MAX_ALIASES:
            raise YamlProblemError(f"more than {MAX_ALIASES} aliases of lists and mappings", line)
        if self.documents > 1:
            raise YamlProblemError("a second document begins", line)


# Value of a plain `<<` until it is known whether it is a key.
_MERGE = object()


@dataclass
class _Builder:
    """Builds values from events; the recursion depth is bounded by that of the text."""

    events: Iterator[Event]
    anchors: dict[str, Any] = field(default_factory=dict)

    def document(self) -> Any:
        value: Any = None
        for event in self.events:
            if isinstance(event, NodeEvent):
                value = self._value(event)
        return value

    def _value(self, event: Any) -> Any:
        value = self._node(event)
        if value is _MERGE:
            raise YamlProblemError("<< is used as a value", event.start_mark.line + 1)
        return value

    def _node(self, event: Any) -> Any:
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise YamlProblemError(f"not valid YAML: undefined alias {event.anchor!r}", line)
            return self.anchors[event.anchor]
        if isinstance(event, ScalarEvent):
            value = _scalar(event, line)
        elif isinstance(event, SequenceStartEvent):
            _check_tag(event, "seq", line)
            value = [self._value(item) for item in self._items()]
        else:
            _check_tag(event, "map", line)
            value = self._mapping(line)
        if event.anchor:
            self.anchors[event.anchor] = value
        return value

    def _items(self) -> Iterator[Event]:
        """Yield the first events of the values in the open list or mapping."""
        for event in self.events:
            if not isinstance(event, NodeEvent):
                return
            yield event

    def _mapping(self, line: int) -> YamlMapping:
        own, merged = YamlMapping(), YamlMapping()
        for event in self._items():
            key, at = self._node(event), event.start_mark.line + 1
            value = self._value(next(self.events))
            if key is _MERGE:
                _merge(merged, value, at)
            else:
                _put(own, key, value, at)
        result = YamlMapping()
        result.update({**merged, **own})
        result.lines = {**merged.lines, **own.lines}
        result.line, result.repeated = line, own.repeated
        return result


def _put(mapping: YamlMapping, key: Any, value: Any, line: int) -> None:
    if isinstance(key, dict | list):
        raise YamlProblemError("a key is a list or a mapping", line)
    if key in mapping:
        mapping.repeated.append((key, mapping.lines[key]))
    mapping[key] = value
    mapping.lines[key] = line


def _merge(mapping: YamlMapping, value: Any, line: int) -> None:
    """Add missing keys: of several mappings the first takes precedence, and a mapping's own keys over all."""
    for source in value if isinstance(value, list) else [value]:
        if not isinstance(source, YamlMapping):
            raise YamlProblemError("<<: expected a mapping or a list of mappings", line)
        for key, item in source.items():
            if key not in mapping:
                mapping[key] = item
                mapping.lines[key] = source.lines[key]


def _check_tag(event: Any, expected: str, line: int) -> None:
    tag = str(event.tag) if event.tag else ""
    if tag and tag not in {"!", f"{_TAG}{expected}"}:
        raise YamlProblemError(f"the tag {tag.replace(_TAG, '!!')} is not supported", line)


def _scalar(event: ScalarEvent, line: int) -> Any:
    text, tag = event.value, str(event.tag) if event.tag else ""
    try:
        if tag in {"!", f"{_TAG}str"} or (not tag and not event.implicit[0]):
            return text
        if not tag:
            return _MERGE if text == "<<" else _resolved(text)
        value = _resolved(text)
    except ValueError as problem:
        raise YamlProblemError(f"not a number: {str(problem)[:80]}", line) from None
    if type(value) is not _KINDS.get(tag.removeprefix(_TAG)):
        raise YamlProblemError(f"the tag {tag.replace(_TAG, '!!')} is not supported, or does not fit {text!r}", line)
    return value


def _resolved(text: str) -> Any:
    """Return the value of a plain scalar; a date stays a text."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() in _TRUE
    if _INT.fullmatch(text):
        return _integer(text.replace("_", ""))
    return _real(text.replace("_", "")) if _FLOAT.fullmatch(text) else text


def _integer(text: str) -> int:
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-")
    if ":" in digits:
        return sign * int(_base_60(digits.split(":"), int))
    for prefix, base in (("0b", 2), ("0x", 16), ("0", 8)):
        if digits.startswith(prefix) and digits != "0":
            return sign * int(digits.removeprefix(prefix), base)
    return sign * int(digits)


def _real(text: str) -> float:
    sign, digits = (-1.0 if text[0] == "-" else 1.0), text.lstrip("+-").lower()
    if ":" in digits:
        return sign * float(_base_60(digits.split(":"), float))
    return sign * float(digits.removeprefix(".") if digits in {".inf", ".nan"} else digits)


def _base_60(parts: list[str], kind: Any) -> Any:
    total = kind(0)
    for part in parts:
        total = total * 60 + kind(part)
    return total
