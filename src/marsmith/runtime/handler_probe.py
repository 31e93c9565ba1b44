"""Import one module as TorchServe's worker does, and write the outcome.

Run as a program in a fresh process::

    python -P handler_probe.py FOLDER MODULE RESULT.json

It needs only the standard library. With -P its own folder is not on sys.path, so the module finds the same modules as
in a worker.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


def main(folder: str, name: str, result: str) -> None:
    """Import the module ``name`` from ``folder`` and write the outcome to the file ``result``."""
    sys.path.insert(0, folder)
    outcome: dict[str, Any] = {"error": None, "classes": [], "names": []}
    try:
        module = importlib.import_module(name)
        outcome.update(classes=_classes(module), names=dir(module))
    except BaseException as error:  # Also SystemExit: any exception ends a worker.
        outcome["error"] = _described(error, folder)
    Path(result).write_text(json.dumps(outcome), encoding="utf-8")


def _classes(module: ModuleType) -> list[str]:
    """Return the names of the classes as TorchServe counts them: the names in the module."""
    members = inspect.getmembers(module, inspect.isclass)
    return [name for name, value in members if value.__module__ == module.__name__]


def _described(error: BaseException, folder: str) -> dict[str, Any]:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    shown = frames[frames.index(own[0]) :] if own else frames
    file, line = (own[-1].filename, own[-1].lineno) if own else (None, 1)
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_relative_to(folder):
        file, line = error.filename, error.lineno
    text = ["Traceback (most recent call last):\n", *traceback.format_list(shown)]
    text += traceback.format_exception_only(type(error), error)
    return {
        "type": type(error).__name__,
        "message": str(error),
        "missing": error.name if isinstance(error, ModuleNotFoundError) else None,
        "file": file,
        "line": line or 1,
        "traceback": "".join(text),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
