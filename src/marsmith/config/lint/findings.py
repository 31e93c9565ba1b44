"""Rules and findings of `marsmith check`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Severity = Literal["error", "warning", "note"]

# An error makes requests fail, a warning makes them fail sometimes, a note is information.
# docs/reference/lint-and-config.md explains each rule.
RULES: dict[str, Severity] = {
    "not-python": "error",
    "one-class": "error",
    "no-handle": "error",
    "no-initialize": "error",
    "signature": "error",
    "returns-no-list": "error",
    "async-handle": "warning",
    "load-call": "warning",
    "relative-import": "error",
    "name-clash": "error",
    "unresolved-import": "error",
    "import-fails": "error",
    "frontend-print": "error",
    "print": "note",
    "unsafe-load": "warning",
    "non-ascii-wire": "error",
    "non-ascii-header": "warning",
    "load-fails": "error",
    "reply-count": "error",
    "batch-fails": "error",
    "batch-changes-answers": "warning",
    "not-tried": "note",
}


@dataclass(frozen=True)
class Finding:
    """One problem or note, with its place.

    Attributes:
        rule: name of the rule in ``RULES``.
        file: the file.
        line: counted from 1.
        message: what is wrong.
        fix: what to do.
        severity: error, warning or note.
        detail: further lines, such as a traceback; empty if there are none.
    """

    rule: str
    file: Path
    line: int
    message: str
    fix: str
    severity: Severity
    detail: str = ""


def finding(rule: str, file: Path, line: int, message: str, fix: str, detail: str = "") -> Finding:
    """Make a finding with its rule's severity."""
    return Finding(rule, file, line, message, fix, RULES[rule], detail)
