"""Results for files that have a format of their own, with an edit for a misspelt key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.config.edit import Edit, edit_yaml
from marsmith.config.lint.rules import LintResult, violation
from marsmith.errors import FormatError

_PROBLEM = re.compile(r"(?:line (?P<line>\d+): )?(?P<text>.*)", re.DOTALL)
_UNKNOWN = re.compile(r"unknown key '(?P<path>[^']+)'; did you mean '(?P<right>[^']+)'\?")


@dataclass(frozen=True)
class CheckedFile:
    """A YAML file that violates its format.

    Attributes:
        path: name of the file in findings.
        text: content of the file.
        data: parsed content; empty if it cannot be parsed.
        parse: parses a text of this format, and raises FormatError.
    """

    path: Path
    text: str
    data: Mapping[str, Any]
    parse: Callable[[str, str], object]


def format_problem(rule: str, file: CheckedFile, problem: str, fix: str) -> LintResult:
    """Convert one problem of a FormatError into a result of the rule for such files."""
    match = _PROBLEM.fullmatch(problem)
    line, text = (int(match["line"] or 1), match["text"]) if match else (1, problem)
    return violation(rule, file.path, line, text, fix, _renaming(text, file))


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
    """Return whether a key of another name accepts the present value."""
    place = f"{'.'.join((*rename.path[:-1], str(rename.value)))}"
    try:
        file.parse(edit_yaml(file.text, [rename]), "")
    except FormatError as error:
        return not any(re.search(rf"(^|: |')({re.escape(place)})['.:]", problem) for problem in error.problems)
    return True
