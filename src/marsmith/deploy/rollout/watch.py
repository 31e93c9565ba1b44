"""Watch a version that has just become the default: its users' errors and latency, its workers, its examples."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from marsmith.client.blocking_client import VersionStatus
from marsmith.client.http import HttpRequest, Transport
from marsmith.client.management import READY
from marsmith.deploy.rollout.observation import (
    Items,
    RolloutLimits,
    Sample,
    Window,
    probes_slower,
    read_counters,
    verdict,
)
from marsmith.deploy.rollout.probes import Probe, Prober
from marsmith.errors import ClientError, FormatError
from marsmith.run_state import RunState
from marsmith.server.log import parse_log

# Most faults show at once, and each moment costs users; later on the watch itself must be no load.
_EARLY_S = 1.0
_EARLY_PAUSE_S = 0.05
_PAUSE_S = 0.25
_EXCEPTION = ("Invoking custom service failed", "Prediction error", "System out of memory", "CUDA out of memory")
_METRICS_DEADLINE_S = 5.0
# What our handlers count reaches the metrics API so much later (handlers/gathered_lines.py), and a little more.
_COUNT_LAG_S = 0.4


@dataclass
class Tracebacks:
    """Counts the exceptions that the workers of one version print, as they come.

    Attributes:
        log: the server's ``model_log.log``.
        thread: a part of the names of the version's threads in it.
    """

    log: Path
    thread: str
    _count: int = 0
    _read: int = field(default=0)

    def __post_init__(self) -> None:
        self._read = self.log.stat().st_size if self.log.exists() else 0

    def count(self) -> int:
        """Return how many have been printed since this object was made."""
        if not self.log.exists():
            return self._count
        with self.log.open("rb") as file:
            # A log that is shorter than before has been rolled over.
            file.seek(self._read if self._read <= self.log.stat().st_size else 0)
            text = file.read()
            self._read = file.tell()
        lines = parse_log(text.decode("utf-8", "replace"))
        self._count += sum(self.thread in line.thread and line.text.startswith(_EXCEPTION) for line in lines)
        return self._count


class Observer:
    """Takes samples of one model's counters."""

    def __init__(self, state: RunState, model: str, version: str, transport: Transport, prober: Prober) -> None:
        self._state, self._model, self._transport, self._prober = state, model, transport, prober
        self._tracebacks = Tracebacks(state.folder / "logs" / "model_log.log", f"-{model}_{version}-")
        self._counters = Sample(0.0)

    def sample(self) -> Sample:
        """Read the counters now; where the server does not tell them they are those of the sample before."""
        request = HttpRequest("GET", self._state.metrics, ("metrics",))
        with suppress(ClientError, FormatError):
            reply = self._transport.send(request, token=None, deadline_s=_METRICS_DEADLINE_S)
            self._counters = read_counters(reply.body.decode("utf-8", "replace"), self._model)
        return replace(
            self._counters,
            at_s=time.monotonic(),
            tracebacks=self._tracebacks.count(),
            items={version: self._of_users(version, items) for version, items in self._counters.items.items()},
        )

    def settled(self) -> Sample:
        """Read the counters when they hold all that has been answered by now."""
        if self._counters.items:
            time.sleep(_COUNT_LAG_S)
        return self.sample()

    def _of_users(self, version: str, items: Items) -> Items:
        """Take off the examples that are answered with an error, as they were when they were validated."""
        failures = self._prober.refused[version, 5]
        errors = self._prober.refused[version, 4] + failures
        return replace(items, errors=items.errors - errors, failures=items.failures - failures)


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        trouble: in words why the version must not stay; None where it may.
        after: what happened since the switch.
    """

    trouble: str | None
    after: Window


@dataclass(frozen=True)
class RolloutWatch:
    """What a new version is compared with, and for how long.

    Attributes:
        observer: takes samples.
        prober: sends examples.
        before: what happened while the old version was the default.
        latencies_before: of the examples on the old version, in milliseconds.
        limits: what the new version may cost.
        seconds: how long.
    """

    observer: Observer
    prober: Prober
    before: Window
    latencies_before: tuple[float, ...]
    limits: RolloutLimits
    seconds: float

    def run(self, status: VersionStatus) -> Watched:
        """Watch the version that ``status`` describes, to the end or to the first trouble."""
        # What was asked before the switch must not count as what came after it.
        first = self.observer.settled() if self.prober.refused else self.observer.sample()
        late = time.monotonic() + self.seconds
        asking = ExamplePoller(self.prober, status.model_version)
        try:
            while True:
                last = time.monotonic() >= late
                trouble = self._died(status) or asking.look(wait=last)
                sample = self.observer.settled() if last else self.observer.sample()
                after = Window(first, sample, status.model_version)
                trouble = trouble or self._verdict(after, asking.latencies_ms)
                if trouble or last:
                    return Watched(trouble, after)
                pause_s = _EARLY_PAUSE_S if after.seconds < _EARLY_S else _PAUSE_S
                time.sleep(max(0.0, min(late - time.monotonic(), pause_s)))
        finally:
            asking.end()

    def _died(self, status: VersionStatus) -> str | None:
        return died_since(status, self.prober.client.describe(status.model_name, status.model_version)[0])

    def _verdict(self, after: Window, latencies: list[float]) -> str | None:
        return verdict(self.before, after, self.limits) or probes_slower(self.latencies_before, latencies, self.limits)


class ExamplePoller:
    """Asks a version one example after the other without waiting for it: one that hangs must not stop the watch.

    Attributes:
        latencies_ms: of the answers so far, in milliseconds.
    """

    def __init__(self, prober: Prober, version: str) -> None:
        self._prober, self._version = prober, version
        self._pool = ThreadPoolExecutor(1)
        self._asked: Future[Probe] | None = None
        self.latencies_ms: list[float] = []

    def look(self, *, wait: bool) -> str | None:
        """Return what is wrong with an answer that has come, and ask the next; with ``wait``, for one yet to come."""
        problem = None
        if self._asked and (wait or self._asked.done()):
            probe, self._asked = self._asked.result(), None
            self.latencies_ms.append(probe.latency_ms)
            problem = probe.problem
        examples = self._prober.examples
        if examples and self._asked is None and not wait:
            example = examples[len(self.latencies_ms) % len(examples)]
            self._asked = self._pool.submit(self._prober.ask, self._version, example)
        return problem

    def end(self) -> None:
        """Ask no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def died_since(before: VersionStatus, now: VersionStatus) -> str | None:
    """Say that a worker has died between two looks; a new process has taken its place, or will."""
    alive = {worker.pid for worker in now.workers if worker.status == READY}
    gone = {worker.pid for worker in before.workers} - alive
    return f"{len(gone)} of its {len(before.workers)} workers died" if gone else None
