"""Which archives write a prediction log that two versions can be compared by, and where they write it."""

from __future__ import annotations

from pathlib import Path

from marsmith.archive import Archive
from marsmith.archive.store import handler_settings
from marsmith.predictions.files import log_file
from marsmith.project import Project

_LIBRARY = "marsmith_handler"
# The part of our handlers that takes the front's marks from a request, and what it looks for.
_MARKS, _MARK = f"{_LIBRARY}/marks.py", "x-marsmith-log"
# The part of our handlers that writes the log, under its present and its former name.
_LOGS = (f"{_LIBRARY}/prediction_log.py", "prediction_log.py")


def why_not_comparable(archive: Archive) -> str | None:
    """Return why the replies of a version cannot be compared; None if they can.

    Raises:
        ArchiveError: a member is damaged.
    """
    if _MARK in (archive.text(_MARKS) or ""):
        return None
    if any(name in archive.members for name in _LOGS):
        return f"its handler has an older prediction log, which ignores {_MARK}"
    return "its handler is not built on marsmith_handler, and writes no prediction log"


def log_of(project: Project, archive: Archive) -> Path:
    """Return the log that a version's handler writes."""
    block = handler_settings(archive).get("prediction_log")
    path = block.get("path") if isinstance(block, dict) else None
    if not isinstance(path, str):
        return log_file(project, archive.manifest.model_name)
    # What is not absolute is relative to TorchServe's logs.
    return project.run / "logs" / path
