"""What goes wrong with engines."""

from __future__ import annotations


class EngineMissing(Exception):  # noqa: N818  # not an error yet: another engine may step in
    """An engine cannot run here at all, whatever the file: it is not installed, or not made for the device."""


def damaged(engine: str, file: str, error: BaseException) -> RuntimeError:
    """Return the error for a file that an engine cannot read."""
    lines = str(error).strip().splitlines()
    return RuntimeError(f"{engine} cannot load {file}: {lines[0] if lines else type(error).__name__}")
