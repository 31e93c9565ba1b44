"""The worker processes of a batch, from its side: start them, hand out shards, take reports, replace the dead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self

from marsmith import child_processes
from marsmith.errors import BatchError
from marsmith.scoring.halving import ShardWork
from marsmith.scoring.messages import Channel, WorkerSetup
from marsmith.scoring.parts import PartRecord, part_name

# Deaths of the workers of one shard for which no input can be blamed.
_MOST_IDLE_DEATHS = 5
_KEPT_LINES = 50
_LOOK_S = 0.5


@dataclass(frozen=True)
class Progress:
    """What has happened.

    Attributes:
        rows: inputs answered since the last report; negative for those of a shard that is begun anew.
        part: a part that is finished.
        died: words about a worker that has died; empty for none.
    """

    rows: int = 0
    part: PartRecord | None = None
    died: str = ""


@dataclass(frozen=True)
class Limits:
    """Time limits of a worker, in seconds.

    Attributes:
        startup_s: from the start until the archive is loaded and proved.
        response_s: for one batch.
    """

    startup_s: float
    response_s: float


class _Worker:
    """One process, and the shard that it has."""

    def __init__(self, setup: WorkerSetup, environment: Mapping[str, str]) -> None:
        self.work: ShardWork | None = None
        self.batch: list[int] | None = None
        self.rows = 0
        self.is_ready = False
        self.lost = ""
        self.since = time.monotonic()
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        here, there = Pipe()
        self.process = child_processes.start(
            [sys.executable, "-P", "-m", "marsmith.scoring.worker", str(there.fileno())],
            environment,
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        there.close()
        self.channel = Channel(here)
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()
        with suppress(OSError):
            self.channel.send(**setup.record())

    def give(self, work: ShardWork) -> None:
        """Hand out a shard."""
        self.work, self.batch, self.rows, self.since = work, None, 0, time.monotonic()
        # If it has just died, the next look tells.
        with suppress(OSError):
            self.channel.send(shard=work.index, batches=work.batches, dead=work.dead)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what it has sent.

        Raises:
            EOFError: it has ended.
        """
        while self.channel.connection.poll():
            yield self.channel.receive()
        if child_processes.has_ended(self.process.pid) and not self.channel.connection.poll():
            # A process that it has left behind may hold the other end.
            raise EOFError

    def end(self) -> str:
        """End the process, and return how it ended, in words."""
        code = child_processes.end(self.process, grace_s=0.0)
        self._reader.join(_LOOK_S)
        self.channel.connection.close()
        if self.process.stderr and not self._reader.is_alive():
            self.process.stderr.close()
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        last = next((line.strip() for line in reversed(self._lines) if line.strip()), "no output")
        return f"exit status {code}: {last}"

    @property
    def output(self) -> str:
        """The last lines that it printed."""
        return "".join(self._lines).rstrip()

    def _read_lines(self) -> None:
        with suppress(ValueError, OSError):
            self._lines.extend(self.process.stderr or ())


class Workers:
    """The workers; a context manager, which ends them."""

    def __init__(self, setup: WorkerSetup, count: int, limits: Limits) -> None:
        """Say what each gets, and how many there are."""
        self.setup, self.count, self._limits = setup, count, limits
        self._workers: list[_Worker] = []
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        # The child must import the same marsmith as this process.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        base = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self._environment = self._cleanup.enter_context(child_processes.own_temporary_folder(base))
        self._cleanup.callback(self._end_all)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cleanup.close()

    def run(self, shards: Iterable[ShardWork]) -> Iterator[Progress]:
        """Hand out shards until all are done; yield what happens.

        Raises:
            BatchError: a worker does not start, or cannot write, or shards die with no input to blame.
        """
        rest = iter(shards)
        again: deque[ShardWork] = deque()
        while True:
            self._hand_out(rest, again)
            if not any(worker.work for worker in self._workers):
                return
            wait([worker.channel.connection for worker in self._workers], _LOOK_S)
            for number, worker in enumerate(self._workers):
                yield from self._look(number, worker, again)

    def _hand_out(self, rest: Iterator[ShardWork], again: deque[ShardWork]) -> None:
        while True:
            idle = next((worker for worker in self._workers if worker.work is None), None)
            if idle is None and len(self._workers) == self.count:
                return
            work = again.popleft() if again else next(rest, None)
            if work is None:
                return
            if idle is None:
                idle = _Worker(self.setup, self._environment)
                self._workers.append(idle)
            idle.give(work)

    def _look(self, number: int, worker: _Worker, again: deque[ShardWork]) -> Iterator[Progress]:
        try:
            for message in worker.messages():
                progress = self._take(worker, message)
                if progress:
                    yield progress
            self._check_time(worker)
        except EOFError:
            yield self._replace(number, worker, again)

    def _take(self, worker: _Worker, message: Mapping[str, Any]) -> Progress | None:
        worker.since = time.monotonic()
        if "error" in message:
            raise BatchError(message["error"], tip=message["tip"])
        if "lost" in message:
            worker.lost = message["lost"]
        elif "ready" in message:
            worker.is_ready = True
        elif "batch" in message:
            worker.batch = message["batch"]
        elif "done" in message:
            worker.batch = None
            worker.rows += message["done"]
            return Progress(rows=message["done"])
        else:
            worker.work = None
            statuses = {int(status): count for status, count in message["statuses"].items()}
            return Progress(part=PartRecord(part_name(message["shard"]), message["sha256"], statuses))
        return None

    def _check_time(self, worker: _Worker) -> None:
        """End a worker that takes too long."""
        is_late = worker.batch and time.monotonic() - worker.since > self._limits.response_s
        if is_late:
            worker.lost = f"no reply within the response timeout of {self._limits.response_s:g} s"
            child_processes.kill_group(worker.process.pid)
        elif not worker.is_ready and time.monotonic() - worker.since > self._limits.startup_s:
            raise BatchError(
                f"the archive did not load within {self._limits.startup_s:g} s",
                tip="raise startupTimeout in the model config, or give fewer --workers",
            )

    def _replace(self, number: int, worker: _Worker, again: deque[ShardWork]) -> Progress:
        ended = worker.end()
        if not worker.is_ready:
            raise BatchError(
                f"a worker did not start: {ended}\n{worker.output}", tip="marsmith verify ARCHIVE --replay"
            )
        self._workers[number] = _Worker(self.setup, self._environment)
        work, reason = worker.work, worker.lost or ended
        if work is None:
            return Progress(died=f"an idle worker died: {reason}")
        work.note_death(worker.batch, reason)
        if work.idle_deaths >= _MOST_IDLE_DEATHS:
            raise BatchError(
                f"{part_name(work.index)}: its worker died {work.idle_deaths} times between batches: {reason}",
                tip=f"its last output:\n{worker.output}" if worker.output else "look at the memory: dmesg",
            )
        again.append(work)
        return Progress(-worker.rows, died=f"a worker died in {part_name(work.index)}: {reason}")

    def _end_all(self) -> None:
        for worker in self._workers:
            child_processes.kill_group(worker.process.pid)
        for worker in self._workers:
            worker.end()
