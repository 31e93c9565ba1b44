"""Errors of engines."""

from __future__ import annotations

from marsmith_handler.error_text import useful_line


class EngineMissing(Exception):  # noqa: N818  # not an error yet: another engine may step in
    """An engine cannot run any file here: it is not installed, or does not support the device."""


def damaged(engine: str, file: str, error: BaseException) -> RuntimeError:
    """Return the error for a file that an engine cannot read."""
    return RuntimeError(f"{engine} cannot load {file}: {useful_line(error)}")
