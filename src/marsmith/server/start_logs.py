"""What the logs of a server that starts tell about the versions that do not load."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import WorkerDiedError
from marsmith.runtime.traceback import summary
from marsmith.server.log import WorkerDeath, first_death, java_cause, parse_log, refused_loads
from marsmith.state.served import Version

CONSOLE_LOG = "console.log"
WORKERS_LOG = "model_log.log"
FRONTEND_LOG = "ts_log.log"

_POLL_S = 0.2
# Enough for a busy machine, and short for somebody who waits for the reason.
_EQUAL_LOOKS = 5
_LAST_WORDS_TIMEOUT_S = 20.0
_TAIL_LINES = 15
_LOADING = "Loading initial models: "
_LOADED = "Initialize Inference server"


@dataclass(frozen=True)
class StartLogs:
    """The logs of one start.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    @property
    def tip(self) -> str:
        """Where a worker's own words are."""
        return f"what the worker printed: {self.folder / WORKERS_LOG}"

    @property
    def folder_tip(self) -> str:
        """Where all logs are."""
        return f"the logs are in {self.folder}"

    def refused(self) -> dict[str, str]:
        """Return what TorchServe itself refused to load, with the reason."""
        return dict(refused_loads(parse_log(self._text(FRONTEND_LOG))))

    def ended_while_loading(self) -> tuple[str, str] | None:
        """Return what Java was loading when it ended, as it was named, and why; None when it was not loading."""
        named = None
        for line in parse_log(self._text(FRONTEND_LOG)):
            if line.text.startswith(_LOADING):
                named = line.text.removeprefix(_LOADING)
            elif line.text.startswith(_LOADED):
                return None
        if named is None:
            return None
        # In the foreground the console is not ours to read.
        return named, java_cause(self._text(CONSOLE_LOG)) or "its log does not say why"

    def death(self, apart_from: Collection[str] = ()) -> WorkerDeath | None:
        """Return the worker that died first, of other versions than these; they are named as in the logs."""
        workers, frontend = parse_log(self._text(WORKERS_LOG)), parse_log(self._text(FRONTEND_LOG))
        return first_death(workers, frontend, apart_from)

    def last_words(self, death: WorkerDeath, apart_from: Collection[str]) -> WorkerDeath:
        """Look again until nothing is added, and without a whole traceback until the worker has died once more.

        The frontend may still be reading what the worker printed, and what it does not read in time is lost; but it
        starts the worker again after a second.
        """
        equal_looks = 0
        deadline = time.monotonic() + _LAST_WORDS_TIMEOUT_S
        while time.monotonic() < deadline and not (
            death.traceback and not death.is_cut_off and equal_looks >= _EQUAL_LOOKS
        ):
            time.sleep(_POLL_S)
            again = self.death(apart_from) or death
            equal_looks = equal_looks + 1 if again == death else 0
            death = again
        return death

    def printed_by_java(self) -> str:
        """Return the last lines of what Java printed before it could write a log."""
        return "\n".join(self._text(CONSOLE_LOG).splitlines()[-_TAIL_LINES:])

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def worker_died(death: WorkerDeath, version: Version, logs: Path) -> WorkerDiedError:
    """Say which version's worker died, and of what."""
    if death.traceback:
        cause = summary(death.traceback)
    else:
        cause = "it printed no traceback; its last lines:\n" + "\n".join(f"  {line}" for line in death.last_lines)
    tip = f"what it printed: {logs / WORKERS_LOG}"
    if cause.startswith("ModuleNotFoundError"):
        tip = f"install the module where the server runs, or add its file to the archive; {tip}"
    return WorkerDiedError(f"a worker of {':'.join(version)} died: {cause}", traceback=death.traceback, tip=tip)
