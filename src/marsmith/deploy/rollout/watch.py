"""Watch of a new default version: errors and latency of its users, its workers and its examples."""

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

# Most faults show at once, and each moment costs users. Later the watch must not become a load itself.
_EARLY_S = 1.0
_EARLY_PAUSE_S = 0.05
_PAUSE_S = 0.25
_EXCEPTION = ("Invoking custom service failed", "Prediction error", "System out of memory", "CUDA out of memory")
_METRICS_DEADLINE_S = 5.0
# Delay of our handlers' counts in the metrics API (marsmith_handler/gathered_lines.py), plus a margin.
_COUNT_LAG_S = 0.4


@dataclass
class Tracebacks:
    """Counts the exceptions that the workers of one version print.

    Attributes:
        log: the server's ``model_log.log``.
        thread: part of the names of the version's threads in the log.
    """

    log: Path
    thread: str
    _count: int = 0
    _read: int = field(default=0)

    def __post_init__(self) -> None:
        self._read = self.log.stat().st_size if self.log.exists() else 0

    def count(self) -> int:
        """Return the number of exceptions since this object was created."""
        if not self.log.exists():
            return self._count
        with self.log.open("rb") as file:
            # A log that is shorter than before has been rotated.
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
        """Read the counters now. Counters that the server does not report keep their values of the sample before."""
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
        """Wait until the counters include all answers so far, then read them."""
        if self._counters.items:
            time.sleep(_COUNT_LAG_S)
        return self.sample()

    def _of_users(self, version: str, items: Items) -> Items:
        """Subtract the examples whose validated reply is an error."""
        failures = self._prober.refused[version, 5]
        errors = self._prober.refused[version, 4] + failures
        return replace(items, errors=items.errors - errors, failures=items.failures - failures)


@dataclass(frozen=True)
class Watched:
    """Result of the watch.

    Attributes:
        trouble: why the version must not stay; None if it may.
        after: the counters since the switch.
    """

    trouble: str | None
    after: Window


@dataclass(frozen=True)
class RolloutWatch:
    """Watch of a new version: what to compare with, and for how long.

    Attributes:
        observer: takes samples.
        prober: sends examples.
        before: the counters while the old version was the default.
        latencies_before: latencies of the examples on the old version, in milliseconds.
        limits: limits that the new version must keep.
        seconds: duration, in seconds.
    """

    observer: Observer
    prober: Prober
    before: Window
    latencies_before: tuple[float, ...]
    limits: RolloutLimits
    seconds: float

    def run(self, status: VersionStatus) -> Watched:
        """Watch the version of ``status`` until the time is over or a problem is found."""
        # Requests from before the switch must not count as requests after it.
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
    """Sends examples to a version one after the other in the background: an example that hangs must not stop the watch.

    Attributes:
        latencies_ms: latencies of the answers so far, in milliseconds.
    """

    def __init__(self, prober: Prober, version: str) -> None:
        self._prober, self._version = prober, version
        self._pool = ThreadPoolExecutor(1)
        self._asked: Future[Probe] | None = None
        self.latencies_ms: list[float] = []

    def look(self, *, wait: bool) -> str | None:
        """Return the problem of an answer that has arrived, and send the next example.

        With ``wait``, wait for an answer.
        """
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
        """Stop sending."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def died_since(before: VersionStatus, now: VersionStatus) -> str | None:
    """Describe the workers that died between two looks; new processes replace them."""
    alive = {worker.pid for worker in now.workers if worker.status == READY}
    gone = {worker.pid for worker in before.workers} - alive
    return f"{len(gone)} of its {len(before.workers)} workers died" if gone else None
