"""Names of the classes, from files in common formats; by default ``index_to_name.json``.

The formats are those that ``marsmith.export.class_names`` accepts in recipes, and those of TorchServe's own handlers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

# The key of TorchServe's detectors, and that of Hugging Face's config.json.
_NESTS = ("object_type_names", "id2label")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_EXPECTED = '["ant", "bee"], {"0": "ant"}, {"0": ["id", "ant"]} or {"ant": 0}'
# For a file that gives a class the number one billion: a list of as many names would take all memory.
_MOST = 1_000_000


def read_labels(file: Path) -> list[str] | None:
    """Read the names of the classes, by class index; None if the file does not exist.

    A ``.txt`` file has one name a line. JSON contains a list of names, ``{"0": "name"}``, ``{"0": ["id", "name"]}`` or
    ``{"name": 0}``, directly or under ``object_type_names`` or ``id2label``. A class that the file does not name has
    its number as its name.

    Raises:
        RuntimeError: the file has another format.
    """
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = _lines(text) if file.suffix == ".txt" else json.loads(text)
        named = _by_index(content)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise RuntimeError(f"{file.name} should hold {_EXPECTED}: {error}") from None
    return [named.get(index, str(index)) for index in range(max(named, default=-1) + 1)]


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _by_index(content: object) -> dict[int, str]:
    """Return names by index. The values show the kind of mapping: names may be digits, indices are never names."""
    if isinstance(content, dict):
        content = next((content[key] for key in _NESTS if isinstance(content.get(key), list | dict)), content)
    if isinstance(content, list):
        return {index: _name(value) for index, value in enumerate(content)}
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}")
    if content and all(type(value) is int for value in content.values()):
        pairs = [(_index(index), _name(name)) for name, index in content.items()]
    else:
        pairs = [(_index(index), _name(name)) for index, name in content.items()]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("it names a class twice")
    if max(named, default=0) >= _MOST:
        raise ValueError(f"class {max(named)} is beyond {_MOST} classes")
    return named


def _index(value: str | int) -> int:
    if isinstance(value, str) and not _INDEX.fullmatch(value):
        raise ValueError(f"{value!r} is not the number of a class")
    if int(value) < 0:
        raise ValueError(f"{value} is not the number of a class")
    return int(value)


def _name(value: object) -> str:
    last = value[-1] if isinstance(value, list) and value else value
    if not isinstance(last, str) or not last.strip():
        raise TypeError(f"{value!r} is not a name")
    last.encode()  # a lone surrogate, which no reply can contain, is a ValueError
    return last
