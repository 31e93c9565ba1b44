"""Bounded YAML: marsmith's own files strictly, and a model config as TorchServe reads it.

Strict means YAML 1.2, one mapping, no duplicate keys; all problems are reported with their places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from marsmith.bounded_yaml import YamlMapping, YamlProblemError, bounded_events, parser_problems, read_as_torchserve
from marsmith.errors import FormatError
from marsmith.names import did_you_mean


class Strict(BaseModel):
    """Base of the models for YAML files: frozen, no unknown keys, no implicit conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


Model = TypeVar("Model", bound=Strict)

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_YAML_11_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def load_mapping(text: str, source: str, error: type[FormatError]) -> Mapping[str, Any]:
    """Parse ``text`` as YAML 1.2 with a mapping at the top level.

    Raises:
        FormatError: (as ``error``) the text is not YAML, exceeds the bounds, has a duplicate key, or is not a mapping.
    """
    loaded = _within_bounds(lambda: _load_strictly(text), source, error)
    if not isinstance(loaded, Mapping):
        raise error(source, ["expected a mapping (key: value) at the top"])
    return loaded


def load_model_config(text: str, source: str, error: type[FormatError]) -> YamlMapping:
    """Parse the text of a model config as TorchServe does: YAML 1.1 with merges, the last of two equal keys counts.

    Raises:
        FormatError: (as ``error``) TorchServe could not load it, or would end with all its models.
    """
    loaded = _within_bounds(lambda: read_as_torchserve(text), source, error)
    if not isinstance(loaded, YamlMapping):
        raise error(source, ["expected a mapping (key: value) at the top"])
    # ModelConfig.java casts these keys to texts; the exception ends the server with all its models.
    cast = [loaded, *(block for block in [loaded.get("torchrun")] if isinstance(block, YamlMapping))]
    wrong = [(block.lines[key], key) for block in cast for key in block if not isinstance(key, str)]
    if wrong:
        raise error(source, [f"line {line}: the key {key!r} is not a text in YAML 1.1" for line, key in wrong])
    return loaded


def line_of(data: Any, key: Any) -> int | None:
    """Return the line, counted from 1, of a key of a loaded mapping; None if it is unknown."""
    if isinstance(data, YamlMapping):
        return data.lines.get(key)
    marks = getattr(data, "lc", None)
    try:
        return int(marks.key(key)[0]) + 1 if marks is not None else None
    except (KeyError, TypeError):
        # A merged key has no line of its own.
        return None


def _load_strictly(text: str) -> Any:
    for _ in bounded_events(text, "1.2"):
        pass
    with parser_problems():
        return YAML(typ="rt").load(text)


def _within_bounds(read: Callable[[], Any], source: str, error: type[FormatError]) -> Any:
    try:
        return read()
    except YamlProblemError as problem:
        place = f"line {problem.line}: " if problem.line else ""
        raise error(source, [f"{place}{problem.reason}"]) from None


def parse(model: type[Model], text: str, source: str, error: type[FormatError]) -> Model:
    """Parse ``text`` as YAML and validate it as ``model``.

    Raises:
        FormatError: (as ``error``) there are problems; the message lists all of them, with the nearest known key for an
            unknown one.
    """
    data = load_mapping(text, source, error)
    try:
        return model.model_validate(_plain(data))
    except ValidationError as problems:
        raise error(source, [_sentence(problem, data, model) for problem in problems.errors()]) from None


class _Representer(RoundTripRepresenter):
    """Renders floats that are floats in YAML 1.1 as well, where ``1e-05`` is a text."""

    def represent_float(self, data: float) -> Any:
        text = repr(data)
        mantissa, exponent, power = text.partition("e")
        text = text if "." in mantissa else f"{mantissa}.0{exponent}{power}"
        return self.represent_scalar("tag:yaml.org,2002:float", text)


_Representer.add_representer(float, _Representer.represent_float)


def dump(data: Mapping[str, Any], *, blocks: bool = False) -> str:
    """Render ``data`` as YAML with the same meaning in 1.1 and 1.2, keys in their own order, deterministically.

    Args:
        data: what to render.
        blocks: whether a text of several lines stays one, as a block; else its line ends are escaped.
    """
    yaml = YAML(typ="rt")
    yaml.Representer = _Representer
    yaml.allow_unicode = True
    yaml.width = 4096
    stream = StringIO()
    yaml.dump(_quoted(_plain(data), blocks), stream)
    return stream.getvalue()


def _quoted(value: Any, blocks: bool) -> Any:
    """Mark the texts that need quotes.

    TorchServe's frontend and its Python worker read YAML 1.1, where ``no``, ``on`` and ``1_0`` are not texts.
    """
    if isinstance(value, dict):
        return {_quoted(key, False): _quoted(item, blocks) for key, item in value.items()}
    if isinstance(value, list):
        return [_quoted(item, blocks) for item in value]
    if blocks and isinstance(value, str) and "\n" in value:
        return LiteralScalarString(value)
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _YAML_11_WORDS):
        return DoubleQuotedScalarString(value)
    return value


def _plain(value: Any) -> Any:
    """Convert the parser's containers and scalars into Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _sentence(problem: Any, data: Any, model: type[Strict]) -> str:
    location = problem["loc"]
    line = _line(data, location)
    place = f"line {line}: " if line else ""
    path = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"{place}unknown key {path!r}{did_you_mean(str(location[-1]), known)}"
    if problem["type"] == "missing":
        return f"{place}missing key {path!r}"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{place}{path or 'the file'}: {reason[0].lower() + reason[1:]}, not {problem['input']!r}"


def _line(data: Any, location: tuple[int | str, ...]) -> int | None:
    """Return the line, counted from 1, of the deepest part of ``location`` in the text."""
    line = None
    for part in location:
        marks = getattr(data, "lc", None)
        if marks is None:
            break
        try:
            line = marks.key(part)[0] + 1 if isinstance(data, Mapping) else marks.item(part)[0] + 1
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
    return line


def _known_keys(model: type[Strict], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the model allows at ``location``."""
    current: Any = model
    for part in location:
        field = next((f for n, f in current.model_fields.items() if part in (n, f.alias)), None)
        models = _models_in(field.annotation) if field else []
        if isinstance(part, int):
            continue
        if not models:
            return []
        current = models[0]
    return [field.alias or name for name, field in current.model_fields.items()]


def _models_in(annotation: Any) -> list[type[Strict]]:
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]
