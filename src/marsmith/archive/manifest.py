"""``MAR-INF/MANIFEST.json``: TorchServe's data about an archive, and marsmith's own key.

TorchServe ignores unknown fields. They are kept when a manifest is parsed and rendered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from marsmith.errors import FormatError
from marsmith.json_reader import read_json

FILE_NAME = "MAR-INF/MANIFEST.json"
FORMAT_VERSION = 1
# Accepted by torch-model-archiver, and parsed into an enumeration by TorchServe.
RUNTIMES = ("python", "python3", "LSP")

# (field of Manifest, key in the text), in torch-model-archiver's order.
_MODEL_KEYS = (
    ("model_name", "modelName"),
    ("serialized_file", "serializedFile"),
    ("handler", "handler"),
    ("model_file", "modelFile"),
    ("model_version", "modelVersion"),
    ("extensions", "extensions"),
    ("requirements_file", "requirementsFile"),
    ("config_file", "configFile"),
)
_TOP_KEYS = (
    ("created_on", "createdOn"),
    ("runtime", "runtime"),
    ("archiver_version", "archiverVersion"),
    ("marsmith", "marsmith"),
)
_REQUIRED = frozenset({"modelName", "handler"})
# TorchServe's defaults for missing fields. null counts as missing, except for the runtime, which is then null.
_DEFAULTS = {"modelVersion": "1.0", "runtime": "python"}
_MAPPINGS = frozenset({"extensions", "marsmith"})


@dataclass(frozen=True)
class Manifest:
    """The manifest of one archive; None means that the text does not have the field.

    Attributes:
        model_name: name under which TorchServe registers the model.
        model_version: any non-empty text, such as ``1.0``.
        handler: ``<file>.py``, ``<file>.py:<function>``, or the name of a built-in handler.
        serialized_file: base name of the member with the weights.
        model_file: base name of the member with the class of an eager module.
        requirements_file: base name of the member with pip requirements.
        config_file: base name of the model config.
        extensions: additions in TorchServe's field; marsmith writes none.
        runtime: ``python``, ``python3`` or ``LSP``.
        archiver_version: the tool that made the archive, and its version.
        created_on: ``dd/mm/YYYY HH:MM:SS``.
        marsmith: marsmith's own key, ``{"formatVersion": 1}``; None in an archive of another tool.
        extra: further fields at the top level.
        model_extra: further fields of ``model``.
        noncanonical: invalid values that TorchServe reads nevertheless; one sentence each.
    """

    model_name: str
    model_version: str
    handler: str
    serialized_file: str | None = None
    model_file: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    extensions: Mapping[str, Any] | None = None
    runtime: str = "python"
    archiver_version: str | None = None
    created_on: str | None = None
    marsmith: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    model_extra: Mapping[str, Any] = field(default_factory=dict)
    noncanonical: tuple[str, ...] = field(default=(), compare=False)

    @property
    def format_version(self) -> int | None:
        """Version of marsmith's archive format; None for an archive of another tool."""
        version = (self.marsmith or {}).get("formatVersion")
        return version if isinstance(version, int) and not isinstance(version, bool) else None


def parse_manifest(text: str, source: str = FILE_NAME) -> Manifest:
    """Parse a manifest.

    For every manifest m, ``parse_manifest(render_manifest(m)) == m``. Some invalid values are accepted by TorchServe (a
    number instead of a text, no runtime, no version). They are parsed as TorchServe does, and listed in
    ``noncanonical``.

    Raises:
        FormatError: the text is not JSON, a key occurs twice, a required field is missing or empty, or a value has the
            wrong type. The message lists all problems.
    """
    data = _load(text, source)
    model = data.get("model")
    if not isinstance(model, dict):
        raise FormatError(source, ["the field 'model' is missing or not an object"])
    problems: list[str] = []
    noncanonical: list[str] = []
    top = _take(data, _TOP_KEYS, "", problems, noncanonical)
    inner = _take(model, _MODEL_KEYS, "model.", problems, noncanonical)
    if not problems and top["runtime"] not in RUNTIMES:
        problems.append(f"runtime: {top['runtime']!r} is not one of {', '.join(RUNTIMES)}")
    if problems:
        raise FormatError(source, problems)
    known_top = {"model", *(key for _, key in _TOP_KEYS)}
    known_model = {key for _, key in _MODEL_KEYS}
    extra = {key: value for key, value in data.items() if key not in known_top}
    model_extra = {key: value for key, value in model.items() if key not in known_model}
    return Manifest(**top, **inner, extra=extra, model_extra=model_extra, noncanonical=tuple(noncanonical))


def render_manifest(manifest: Manifest) -> str:
    """Render a manifest deterministically: ASCII, fields in torch-model-archiver's order, a newline at the end."""
    model = _present(manifest, _MODEL_KEYS)
    top = _present(manifest, _TOP_KEYS)
    before: dict[str, Any] = {key: top.pop(key) for key in ("createdOn", "runtime") if key in top}
    data = {**before, "model": {**model, **manifest.model_extra}, **top, **manifest.extra}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def _present(manifest: Manifest, keys: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return {key: value for name, key in keys if (value := getattr(manifest, name)) is not None}


def _load(text: str, source: str) -> dict[str, Any]:
    try:
        data = read_json(text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_Real, parse_int=_Whole)
    except ValueError as error:
        raise FormatError(source, [f"not valid JSON: {error}"]) from None
    if not isinstance(data, dict):
        raise FormatError(source, ["expected an object at the top"])
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. Keys must be unique, because parsers differ in which of two values they use."""
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return result


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


class _Real(float):
    """A number with its original text: TorchServe reads 1.10 as that text."""

    def __init__(self, text: str) -> None:
        if not math.isfinite(self):
            raise ValueError(f"the number {text} is too large")
        self.text = text


class _Whole(int):
    """A whole number with its original text."""

    def __init__(self, text: str) -> None:
        self.text = text


def _text_of(value: Any) -> str | None:
    """Return the text that TorchServe makes of a number or a boolean; None for other values."""
    if isinstance(value, bool):
        return str(value).lower()
    return getattr(value, "text", None)


def _take(
    data: dict[str, Any],
    keys: tuple[tuple[str, str], ...],
    prefix: str,
    problems: list[str],
    noncanonical: list[str],
) -> dict[str, Any]:
    """Return the known fields by their Python names, and add problems to ``problems``."""
    taken: dict[str, Any] = {}
    for name, key in keys:
        value = data.get(key)
        kind: type = dict if key in _MAPPINGS else str
        if kind is str and (text := _text_of(value)) is not None:
            noncanonical.append(f"{prefix}{key} is {text} without quotes, instead of a text")
            value = text
        if value is None and key in _DEFAULTS and not (key == "runtime" and key in data):
            value = _DEFAULTS[key]
            noncanonical.append(f"{prefix}{key} is missing, and TorchServe uses {value}")
        if value is None:
            if key in _REQUIRED or key in _DEFAULTS:
                problems.append(f"the field '{prefix}{key}' is missing")
        elif not isinstance(value, kind):
            problems.append(f"{prefix}{key}: expected {'an object' if kind is dict else 'a text'}, not {value!r:.80}")
        elif (key in _REQUIRED or key in _DEFAULTS) and not value:
            problems.append(f"the field '{prefix}{key}' is empty")
        taken[name] = value
    return taken
