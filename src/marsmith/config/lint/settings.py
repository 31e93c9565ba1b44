"""Rules for the settings of a project, ``config/marsmith.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marsmith import strict_yaml
from marsmith.config.lint.problems import CheckedFile, format_problem
from marsmith.config.lint.rules import LintResult, violation
from marsmith.config.project_settings import key_problems, parse_settings
from marsmith.errors import ConfigError

_FIX = "see docs/reference/lint-and-config.md"


def check_settings(path: Path, text: str, root: Path) -> list[LintResult]:
    """Check the text of a project's settings.

    Args:
        path: name of the file in findings.
        text: content of the file.
        root: the project's root; paths in the file are relative to it.
    """
    data = _parsed(path, text)
    try:
        settings = parse_settings(text, str(path))
    except ConfigError as error:
        file = CheckedFile(path, text, data, parse_settings)
        return [format_problem("MS701", file, problem, _FIX) for problem in error.problems]
    return [
        violation(
            "MS702",
            path,
            _line(data, index),
            message,
            "name a public key in PEM; the path is relative to the project's root",
        )
        for index, message in key_problems(settings, root).items()
    ]


def _parsed(path: Path, text: str) -> Mapping[str, Any]:
    try:
        return strict_yaml.load_mapping(text, str(path), ConfigError)
    except ConfigError:
        return {}


def _line(data: Mapping[str, Any], index: int) -> int:
    marks = getattr(data.get("trusted_keys"), "lc", None)
    return int(marks.item(index)[0]) + 1 if marks is not None else 1
