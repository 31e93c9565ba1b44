"""The child of ``hook``: imports a handler's module and compares replies with it, a line of JSON each.

It imports nothing of marsmith, so that it can run in any Python.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer each line of standard input; first say whether the function could be found."""
    # What a handler prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        compare = _found(Path(sys.argv[1]), sys.argv[2])
    except BaseException as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"agrees": True})
    for line in sys.stdin:
        say(_answer(compare, *json.loads(line)))


def _found(file: Path, name: str) -> Callable[[Any, Any], Any]:
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    for place in (module, *(each for each in vars(module).values() if isinstance(each, type))):
        if getattr(place, "__module__", module.__name__) == module.__name__:
            with contextlib.suppress(AttributeError):
                found: Callable[[Any, Any], Any] = getattr(place, name)
                return found
    raise AttributeError(f"no {name} in {file.name}")


def _answer(compare: Callable[[Any, Any], Any], old: Any, new: Any) -> dict[str, Any]:
    try:
        agrees = compare(old, new)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if not isinstance(agrees, bool):
        return {"error": f"it returned {type(agrees).__name__}, not True or False"}
    return {"agrees": agrees}


if __name__ == "__main__":
    main()
