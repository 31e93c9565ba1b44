"""The log of a server in the foreground as one JSON object a line, for those who collect the logs of containers."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Self

from marsmith.server.log import LogLine, as_record, belongs_to_message, parse_line

# How long a message may wait for lines that still belong to it.
_PATIENCE_S = 0.2
_CHUNK_BYTES = 1 << 16
_END_TIMEOUT_S = 5.0


class JsonLog:
    """Reads what a server prints from a pipe, and writes it on as JSON.

    As a context manager it ends when everything that was printed has been written.

    Attributes:
        source: the file descriptor that the server is to print to.
    """

    def __init__(self, target: int) -> None:
        """Begin to read.

        Args:
            target: the file descriptor to write to.
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
        """Read what is there; a message that waits is written when nothing more comes."""
        if waiting and not select.select([self._reading], [], [], _PATIENCE_S)[0]:
            self._flush(waiting)
        return os.read(self._reading, _CHUNK_BYTES)

    def _take(self, waiting: list[LogLine], raw: str) -> None:
        line = parse_line(raw)
        # A message that begins with a line break goes on below.
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
