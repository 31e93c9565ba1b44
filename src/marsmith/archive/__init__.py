"""Model archives: building, opening and verifying them.

``Archive`` is the one noun; a ``Manifest`` and ``Member`` objects are what one is built from. They are imported on
first use, because writing needs nothing of what reading needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marsmith.archive.manifest import Manifest
    from marsmith.archive.members import Member
    from marsmith.archive.read import Archive

_HOMES = {
    "Archive": "marsmith.archive.read",
    "Manifest": "marsmith.archive.manifest",
    "Member": "marsmith.archive.members",
}

__all__ = ["Archive", "Manifest", "Member"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
