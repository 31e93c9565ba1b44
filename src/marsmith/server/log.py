"""TorchServe's logs: parse them, find why a worker died, and convert them to JSON for log collectors.

``model_log.log`` contains the output of workers, ``ts_log.log`` that of the frontend. Each line names its thread, and
the thread names the worker: ``W-9000-resnet18_1.0-stdout``. The log of a server in the foreground can be written as one
JSON object per line, for collectors of container logs.
"""

from __future__ import annotations

import json
import os
import re
import select
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from marsmith.error_text import useful_line
from marsmith.runtime.traceback import handler_traceback, is_cut_off, summary

_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}) \[(?P<level>[A-Z]+) *\] "
    r"(?P<thread>\S+) (?P<logger>\S+) - (?P<text>.*)"
)
_CONTINUATION = re.compile(r"\s|Caused by: |Suppressed: |[\w.$]+(?:Exception|Error|Throwable)\b")
_WORKER = re.compile(r"W-(?P<id>\d+)-(?P<model>.+?)(?:-(?P<stream>stdout|stderr))?")
_MODEL_FOLDER = re.compile(r'File "(?P<folder>[^"]*/models/[0-9a-f]{32})/')
_WORKER_OUTPUT = "MODEL_LOG"
# First line of every worker process.
_BORN = "s_name_part0="
_DIED = "Backend worker process died."
_LOAD_FAILED = "Failed to load model "
_FRONTEND_SAYS_DEAD = ("Load model failed:", "Backend worker error", "Auto recovery failed again")
_REFUSED = "Failed to load model: "
_THROWN = re.compile(r"(?m)^(?:Exception in thread \S+ )?((?:[\w$]+\.)+[\w$]*(?:Exception|Error)\b)")
_JAVA_PACKAGE = re.compile(r"(?:[a-z_]\w*\.)+(?=[A-Z])")
_LAST_LINES = 10


@dataclass(frozen=True)
class LogLine:
    """One message of a log. Lines without a head belong to the message before them."""

    time: str
    level: str
    thread: str
    logger: str
    text: str


@dataclass(frozen=True)
class WorkerDeath:
    """The first death of a worker.

    Attributes:
        worker: id of the worker, such as ``9000``.
        model: ``<model name>_<model version>``, the name of a version in TorchServe's logs.
        traceback: the Python traceback of its death, reduced to the handler's frames. If several processes of the
            worker died, it is from one that printed it completely. None if there is none.
        last_lines: last output of its first process.
    """

    worker: str
    model: str
    traceback: str | None
    last_lines: tuple[str, ...]

    @property
    def is_cut_off(self) -> bool:
        """Whether the traceback is incomplete."""
        return self.traceback is not None and is_cut_off(self.traceback)

    @property
    def cause(self) -> str:
        """The cause of death in one line."""
        if self.traceback is not None:
            return summary(self.traceback)
        last = next((line.strip() for line in reversed(self.last_lines) if line.strip()), None)
        return f"it printed no traceback; its last line: {last}" if last else "it printed nothing"


def parse_line(raw: str) -> LogLine | None:
    """Parse one line; None if it has no head."""
    match = _LINE.fullmatch(raw)
    return LogLine(**match.groupdict()) if match else None


def belongs_to_message(raw: str) -> bool:
    """Return whether a line without a head continues the message before it, like the lines of a Java exception."""
    return _CONTINUATION.match(raw) is not None


def as_record(line: LogLine) -> dict[str, str]:
    """Return a line as plain data. Its time has a time zone.

    ``source`` is ``frontend``, or the name of the worker that printed the message, such as ``W-9000-resnet18_1.0``.
    """
    local = datetime.strptime(line.time, "%Y-%m-%dT%H:%M:%S,%f").astimezone()
    worker = _WORKER.fullmatch(line.thread) if line.logger == _WORKER_OUTPUT else None
    return {
        "ts": local.isoformat(timespec="milliseconds"),
        "level": line.level,
        "logger": line.logger,
        "message": line.text,
        "source": f"W-{worker['id']}-{worker['model']}" if worker else "frontend",
        "thread": line.thread,
    }


def parse_log(text: str) -> list[LogLine]:
    """Parse the text of a log file; text before the first complete line is ignored."""
    lines: list[LogLine] = []
    for raw in text.splitlines():
        line = parse_line(raw)
        if line:
            lines.append(line)
        elif lines:
            last = lines[-1]
            lines[-1] = LogLine(last.time, last.level, last.thread, last.logger, f"{last.text}\n{raw}")
    return lines


def refused_loads(frontend: Iterable[LogLine]) -> Mapping[str, str]:
    """Return the models that TorchServe refused to load at its start, with the reason in one line."""
    found = {}
    for line in frontend:
        if line.text.startswith(_REFUSED):
            named, _, stack = line.text.removeprefix(_REFUSED).partition("\n")
            found[named] = java_cause(stack) or "its log gives no reason"
    return found


def java_cause(printed: str) -> str:
    """Return the line of a Java exception with the cause, without the package; empty if there is none."""
    thrown = _THROWN.search(printed)
    return _JAVA_PACKAGE.sub("", useful_line(printed[thrown.start(1) :]), count=1) if thrown else ""


def first_death(
    workers: Iterable[LogLine], frontend: Iterable[LogLine], apart_from: Collection[str] = ()
) -> WorkerDeath | None:
    """Return the worker that died first, from the lines of both logs; None if none died.

    Args:
        workers: lines of ``model_log.log``.
        frontend: lines of ``ts_log.log``.
        apart_from: versions to ignore, as ``<model name>_<model version>``.
    """
    printed = [line for line in workers if line.logger == _WORKER_OUTPUT]
    said = [line for line in frontend if line.text.startswith(_FRONTEND_SAYS_DEAD)]
    died = [line for line in printed if line.text == _DIED]
    signs = [line for line in died + said if (who := _WORKER.fullmatch(line.thread)) and who["model"] not in apart_from]
    if not signs:
        return None
    match = _WORKER.fullmatch(min(signs, key=lambda line: line.time).thread)
    if match is None:
        return None
    worker, model = match["id"], match["model"]
    lives = [life for stream in ("stdout", "stderr") for life in _lives(printed, f"W-{worker}-{model}-{stream}")]
    causes = [cause for life in lives if (cause := _cause(life))]
    whole = [cause for cause in causes if not is_cut_off(cause)]
    last_lines = tuple(lives[0][-_LAST_LINES:]) if lives else ()
    return WorkerDeath(worker, model, next(iter(whole or causes), None), last_lines)


def _lives(printed: Iterable[LogLine], thread: str) -> list[list[str]]:
    """Return the output of each process of a worker; a worker that died is restarted under the same name.

    The end of an output may be missing: the frontend closes the pipe when the worker has ended.
    """
    lives: list[list[str]] = []
    for line in printed:
        if line.thread == thread:
            if not lives or line.text.startswith(_BORN):
                lives.append([])
            lives[-1].append(line.text)
    return lives


def _cause(lines: Sequence[str]) -> str | None:
    """Return the traceback that ended the process.

    A worker logs a RuntimeError at load, and then dies of another one, "500 - Unknown exception".
    """
    if any(line.startswith(_LOAD_FAILED) for line in lines) and _DIED in lines:
        lines = lines[: lines.index(_DIED)]
    folders = (_MODEL_FOLDER.search(line) for line in lines)
    folder = next((match["folder"] for match in folders if match), "/")
    return handler_traceback(lines, Path(folder))


# Maximum wait of a message for further lines that belong to it, in seconds.
_PATIENCE_S = 0.2
_CHUNK_BYTES = 1 << 16
_END_TIMEOUT_S = 5.0


class JsonLog:
    """Reads the output of a server from a pipe, and writes it as JSON.

    As a context manager it ends when all output has been written.

    Attributes:
        source: file descriptor for the output of the server.
    """

    def __init__(self, target: int) -> None:
        """Start to read.

        Args:
            target: file descriptor to write to.
        """
        self._target = target
        self._reading, self.source = os.pipe()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._pump, name="json-log", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.source)
        self._thread.join(_END_TIMEOUT_S)

    def tell(self, message: str, *, level: str = "INFO", **more: object) -> None:
        """Write a message of marsmith itself."""
        self._write({**_now(level, "marsmith", message, "marsmith"), **more})

    def _pump(self) -> None:
        waiting: list[LogLine] = []
        rest = b""
        while chunk := self._read(waiting):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(waiting, line.decode("utf-8", "replace").rstrip("\r"))
        if rest:
            self._take(waiting, rest.decode("utf-8", "replace"))
        self._flush(waiting)
        os.close(self._reading)

    def _read(self, waiting: list[LogLine]) -> bytes:
        """Read the available output. A message that waits is written when no further lines come."""
        if waiting and not select.select([self._reading], [], [], _PATIENCE_S)[0]:
            self._flush(waiting)
        return os.read(self._reading, _CHUNK_BYTES)

    def _take(self, waiting: list[LogLine], raw: str) -> None:
        line = parse_line(raw)
        # A message that begins with a line break continues on the next line.
        if line is None and waiting and (belongs_to_message(raw) or _begins_below(waiting[0])):
            last = waiting.pop()
            waiting.append(LogLine(last.time, last.level, last.thread, last.logger, f"{last.text}\n{raw}"))
            return
        self._flush(waiting)
        if line is not None:
            waiting.append(line)
        elif raw.strip():
            self._write(_now("INFO", "console", raw, "frontend"))

    def _flush(self, waiting: list[LogLine]) -> None:
        while waiting:
            self._write(as_record(waiting.pop(0)))

    def _write(self, record: Mapping[str, object]) -> None:
        data = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        with self._lock:
            while data:
                data = data[os.write(self._target, data) :]


def _now(level: str, logger: str, message: str, source: str) -> dict[str, str]:
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    return {"ts": now, "level": level, "logger": logger, "message": message, "source": source}


def _begins_below(line: LogLine) -> bool:
    return line.text.split("\n", 1)[0] == ""
