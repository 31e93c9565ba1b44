"""Golden files: texts that are rendered as they were; those of the front without the Lua that is in its own files."""

from __future__ import annotations

import json
import os
from typing import Any

from support.projects import REPOSITORY

_FOLDER = REPOSITORY / "tests" / "golden"


def golden(name: str, rendered: object) -> None:
    """Compare JSON with a golden file of the front."""
    golden_text(f"front/{name}", json.dumps(rendered, indent=1) + "\n")


def golden_text(name: str, text: str) -> None:
    """Compare with a golden file; with MARSMITH_WRITE_GOLDEN it is written anew."""
    path = _FOLDER / name
    if os.environ.get("MARSMITH_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def short(value: Any) -> Any:
    """Return JSON with only the first lines of Lua."""
    if isinstance(value, dict):
        return {name: short(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [short(inner) for inner in value]
    return value.partition("-- Messages")[0] if isinstance(value, str) else value
