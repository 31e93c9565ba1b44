"""Rules about the names of models and versions, which become parts of URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from marsmith.config.lint.rules import Found, found
from marsmith.errors import UsageError
from marsmith.names import check_model_name, check_model_version

_TOKEN = "token"  # noqa: S105, the name of an API


def check_names(path: Path, name: str, version: str, name_line: int, version_line: int) -> Iterator[Found]:
    """Check a model's name and version; the lines are those where they stand, counted from 1."""
    for what, text, line in (("model name", name, name_line), ("version", version, version_line)):
        if text.startswith(_TOKEN):
            message = f"the {what} {text!r} puts /token into management URLs, which then go to the token API"
            yield found("MS601", path, line, message, f"begin the {what} with another word")
    for rule, check, text, line in (
        ("MS603", check_model_name, name, name_line),
        ("MS604", check_model_version, version, version_line),
    ):
        try:
            check(text)
        except UsageError as error:
            yield found(rule, path, line, error.message, error.tip or "")
    if version == "all":
        message = "a version called 'all' cannot be described alone: /models/NAME/all means every version"
        yield found("MS602", path, version_line, message, "call it something else")
