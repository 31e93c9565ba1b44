"""``index_to_name.json``: names of the classes, in the forms that TorchServe's own handlers read."""

from __future__ import annotations

import json
from pathlib import Path


def read_labels(file: Path) -> list[str] | None:
    """Read the names of the classes, by class index; None where the file does not exist.

    ``{"0": "name"}``, ``{"0": ["id", "name"]}`` and ``{"object_type_names": ["name", ...]}`` are understood. A class
    that the file does not name has its number as its name.

    Raises:
        RuntimeError: the file is of no such form.
    """
    if not file.is_file():
        return None
    try:
        mapping = json.loads(file.read_text(encoding="utf-8"))
        names = mapping.get("object_type_names", mapping)
        if isinstance(names, list):
            return [_name(value) for value in names]
        named = {int(index): _name(value) for index, value in names.items()}
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise RuntimeError(
            f'{file.name} is not of the form {{"class": "name"}} or {{"class": ["id", "name"]}}: {error}'
        ) from None
    return [named.get(index, str(index)) for index in range(max(named, default=-1) + 1)]


def _name(value: object) -> str:
    last = value[-1] if isinstance(value, list) else value
    if not isinstance(last, str):
        raise TypeError(f"{value!r} is no name")
    return last
