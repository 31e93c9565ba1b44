"""Logs of a server that starts: which versions do not load, and why."""

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
# Enough for a busy machine, and short for a user who waits for the reason.
_EQUAL_LOOKS = 5
_LAST_WORDS_TIMEOUT_S = 20.0
_TAIL_LINES = 15
_LOADING = "Loading initial models: "
_LOADED = "Initialize Inference server"


@dataclass(frozen=True)
class StartLogs:
    """The logs of one start.

    Attributes:
        folder: folder of the logs.
    """

    folder: Path

    @property
    def tip(self) -> str:
        """A tip with the path of the workers' log."""
        return f"the worker's log:{self.folder / WORKERS_LOG}"

    @property
    def folder_tip(self) -> str:
        """A tip with the folder of all logs."""
        return f"the logs are in {self.folder}"

    def refused(self) -> dict[str, str]:
        """Return the models that TorchServe refused to load, with the reasons."""
        return dict(refused_loads(parse_log(self._text(FRONTEND_LOG))))

    def ended_while_loading(self) -> tuple[str, str] | None:
        """Return the model that Java was loading when it ended, by its name in the command, and why.

        None if it was not loading.
        """
        named = None
        for line in parse_log(self._text(FRONTEND_LOG)):
            if line.text.startswith(_LOADING):
                named = line.text.removeprefix(_LOADING)
            elif line.text.startswith(_LOADED):
                return None
        if named is None:
            return None
        # In the foreground the console output is not captured.
        return named, java_cause(self._text(CONSOLE_LOG)) or "its log does not say why"

    def death(self, apart_from: Collection[str] = ()) -> WorkerDeath | None:
        """Return the worker that died first, except for some versions, named as in the logs."""
        workers, frontend = parse_log(self._text(WORKERS_LOG)), parse_log(self._text(FRONTEND_LOG))
        return first_death(workers, frontend, apart_from)

    def final_death(self, death: WorkerDeath, apart_from: Collection[str]) -> WorkerDeath:
        """Read the logs until nothing is added. Without a complete traceback, wait until the worker has died again.

        The frontend may still be reading the worker's output, and loses what it does not read in time. It restarts the
        worker after a second.
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
        """Return the last lines of Java's output from before it could write a log."""
        return "\n".join(self._text(CONSOLE_LOG).splitlines()[-_TAIL_LINES:])

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""


def worker_died(death: WorkerDeath, version: Version, logs: Path) -> WorkerDiedError:
    """Return the error for a version whose worker died."""
    if death.traceback:
        cause = summary(death.traceback)
    else:
        cause = "it printed no traceback; its last lines:\n" + "\n".join(f"  {line}" for line in death.last_lines)
    tip = f"its log:{logs / WORKERS_LOG}"
    if cause.startswith("ModuleNotFoundError"):
        tip = f"install the module where the server runs, or add its file to the archive; {tip}"
    return WorkerDiedError(f"a worker of {':'.join(version)} died: {cause}", traceback=death.traceback, tip=tip)
