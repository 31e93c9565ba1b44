"""The supervisor's duty to look for drift: it reads new lines of the logs a few at a time, and keeps what they say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from marsmith.monitoring.drift.follow import ModelDrift, logs_of
from marsmith.monitoring.drift.state import DriftFile, DriftState, Stamp
from marsmith.project import Project

# Interval between two looks at the logs, in seconds; and most lines of one model in a look.
LOOK_S = 10.0
MOST_LINES = 2_000
# Archives and logs appear and go away; they are looked for this often, in seconds.
SEARCH_S = 60.0


@dataclass
class _Followed:
    logs: list[Path]
    drift: ModelDrift
    stamp: Stamp | None


class DriftDuty:
    """Judges each window of each served model's versions, and says when one has drifted.

    Attributes:
        name: name for messages.
    """

    name = "drift"

    def __init__(
        self,
        project: Project,
        models: Callable[[], Iterable[str]],
        tell: Callable[[str], None],
        *,
        look_s: float = LOOK_S,
    ) -> None:
        """Look at nothing yet.

        Args:
            project: the project of the server.
            models: returns the names of the models that are served.
            tell: called with each drift, as one sentence.
            look_s: interval between two looks at the logs, in seconds.
        """
        self._project, self._models, self._tell = project, models, tell
        self._look_s = look_s
        self._followed: dict[str, _Followed] = {}
        self._next_look = self._next_search = 0.0

    def tick(self) -> None:
        """Take in what has come to the logs since the last look, if a look is due."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._look_s
        if now >= self._next_search:
            self._search()
            self._next_search = now + SEARCH_S
        for model, followed in list(self._followed.items()):
            self._look_at(model, followed)

    def close(self) -> None:
        """Stop; the next supervisor reads windows that are not full again."""
        self._followed.clear()

    def _search(self) -> None:
        for model in sorted(set(self._models())):
            logs = logs_of(self._project, model)
            known = self._followed.get(model)
            if logs and (known is None or known.logs != logs):
                self._follow(model, logs)

    def _follow(self, model: str, logs: list[Path]) -> None:
        file = DriftFile.of(self._project, model)
        drift = ModelDrift(self._project, model, logs, states=file.read())
        self._followed[model] = _Followed(logs, drift, file.stamp())

    def _look_at(self, model: str, followed: _Followed) -> None:
        file = DriftFile.of(self._project, model)
        if file.stamp() != followed.stamp:
            # `marsmith drift --save` has named another baseline, or the file was removed.
            self._follow(model, followed.logs)
            followed = self._followed[model]
        before = followed.drift.states
        if not followed.drift.read(MOST_LINES)[1]:
            return
        file.write(followed.drift.states)
        followed.stamp = file.stamp()
        for version, state in followed.drift.states.items():
            for text in news(before.get(version), state):
                self._tell(text)


def news(before: DriftState | None, now: DriftState) -> Iterator[str]:
    """Yield a sentence for the skew and for each drift that are new."""
    name = f"{now.model}:{now.version}"
    if now.skew and not (before and before.skew) and now.skew.drifted:
        yield f"{name} gets other requests than its reference: {', '.join(now.skew.drifted)}; marsmith drift {name}"
    last = before.windows[-1].end if before and before.windows else 0.0
    known = set(before.windows[-1].drifted) if before and before.windows else set()
    for window in now.windows:
        if window.end > last and set(window.drifted) - known:
            yield f"{name} drifts from its baseline: {', '.join(window.drifted)}; marsmith drift {name}"
        known = set(window.drifted)
