"""What is wrong with a file that has a model of its own, as lint tells it, with the fix of a key that was misspelt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.config.edit import Edit, edit_yaml
from marsmith.config.lint.rules import LintResult, found
from marsmith.errors import FormatError

_PROBLEM = re.compile(r"(?:line (?P<line>\d+): )?(?P<text>.*)", re.DOTALL)
_UNKNOWN = re.compile(r"unknown key '(?P<path>[^']+)'; did you mean '(?P<right>[^']+)'\?")


@dataclass(frozen=True)
class CheckedFile:
    """A YAML file that does not follow its format.

    Attributes:
        path: as it is to be named.
        text: its content.
        data: what was parsed; empty where nothing could be.
        parse: reads a text of this format, and raises FormatError.
    """

    path: Path
    text: str
    data: Mapping[str, Any]
    parse: Callable[[str, str], object]


def format_problem(rule: str, file: CheckedFile, problem: str, fix: str) -> LintResult:
    """Tell one problem of a FormatError under the rule for files of this kind."""
    match = _PROBLEM.fullmatch(problem)
    line, text = (int(match["line"] or 1), match["text"]) if match else (1, problem)
    return found(rule, file.path, line, text, fix, _renaming(text, file))


def _renaming(text: str, file: CheckedFile) -> Edit | None:
    unknown = _UNKNOWN.fullmatch(text)
    if not unknown:
        return None
    *parents, key = unknown["path"].split(".")
    parent: Any = file.data
    for part in parents:
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    rename = Edit("rename", (*parents, key), unknown["right"])
    fits = key in parent and unknown["right"] not in parent and _mends(file, rename)
    return rename if fits else None


def _mends(file: CheckedFile, rename: Edit) -> bool:
    """Tell whether a key of another name could have the value that stands there."""
    place = f"{'.'.join((*rename.path[:-1], str(rename.value)))}"
    try:
        file.parse(edit_yaml(file.text, [rename]), "")
    except FormatError as error:
        return not any(re.search(rf"(^|: |')({re.escape(place)})['.:]", problem) for problem in error.problems)
    return True
