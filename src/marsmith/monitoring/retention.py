"""The supervisor's duty to remove old lines from prediction logs, also from those that no worker writes to any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from marsmith.archive import Archive
from marsmith.archive.store import handler_settings
from marsmith.config.server_config import model_store
from marsmith.errors import MarsmithError
from marsmith.predictions.comparable import log_of
from marsmith.predictions.forget import forget
from marsmith.project import Project

DAY_S = 86_400.0


class RetentionDuty:
    """Removes, once a day, the lines that are older than ``keep_days`` of the archives in the model store.

    Attributes:
        name: name for messages.
    """

    name = "retention"

    def __init__(self, project: Project, tell: Callable[[str], None]) -> None:
        """Look at nothing yet.

        Args:
            project: the project of the server.
            tell: called with each removal, as one sentence.
        """
        self._project, self._tell = project, tell
        self._next_look = 0.0

    def tick(self) -> None:
        """Remove what is too old, if a day has passed since the last look.

        Raises:
            MarsmithError: the model store is not known.
            OSError: a log cannot be read or replaced; it is then as it was.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + DAY_S
        kept_s: dict[Path, float] = {}
        for log, keep_s in self._logs():
            # If two versions write one log, the longer time holds.
            kept_s[log] = max(keep_s, kept_s.get(log, 0.0))
        for log, keep_s in kept_s.items():
            oldest = time.time() - keep_s
            if count := forget(log, lambda each, oldest=oldest: each.time < oldest):  # type: ignore[misc]
                self._tell(f"{count} lines older than {keep_s / DAY_S:g} days removed from {log}")

    def close(self) -> None:
        """Stop."""

    def _logs(self) -> Iterator[tuple[Path, float]]:
        """Yield each log with a time to keep, in seconds."""
        for path in sorted(model_store(self._project).glob("*.mar")):
            with suppress(MarsmithError, OSError):
                archive = Archive.open(path)
                block = handler_settings(archive).get("prediction_log")
                days = block.get("keep_days") if isinstance(block, dict) else None
                log = log_of(self._project, archive)
                if isinstance(days, int | float) and days > 0 and log.exists():
                    yield log, days * DAY_S
