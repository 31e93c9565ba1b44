"""GitHub's workflow commands, which put a message beside a line of a pull request."""

from __future__ import annotations

_LEVELS = {"error": "error", "warning": "warning", "note": "notice"}


def render_annotation(level: str, file: str, line: int, title: str, message: str) -> str:
    """Print one annotation, as a line that a workflow writes on stdout.

    Args:
        level: ``error``, ``warning`` or ``note``.
        file: relative to the repository's root.
        line: counted from 1.
        title: shown above the message.
        message: the text; its line ends are kept.
    """
    where = f"file={_property(file)},line={line},title={_property(title)}"
    return f"::{_LEVELS[level]} {where}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
