"""Golden files of the front: rendered JSON, without the Lua that is in files of its own."""

from __future__ import annotations

import json
import os
from typing import Any

from support.projects import REPOSITORY

_FOLDER = REPOSITORY / "tests" / "golden" / "front"


def golden(name: str, rendered: object) -> None:
    """Compare with a golden file; with MARSMITH_WRITE_GOLDEN it is written anew."""
    text = json.dumps(rendered, indent=1) + "\n"
    path = _FOLDER / name
    if os.environ.get("MARSMITH_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def short(value: Any) -> Any:
    """Return JSON with only the first lines of Lua."""
    if isinstance(value, dict):
        return {name: short(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [short(inner) for inner in value]
    return value.partition("-- Messages")[0] if isinstance(value, str) else value
