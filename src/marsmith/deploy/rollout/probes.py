"""Probes: examples of an archive, sent to one version of a running server and compared with validated replies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from marsmith.archive.store import StoredExample
from marsmith.client.blocking_client import Client, VersionStatus
from marsmith.errors import ClientError, RequestRejectedError
from marsmith.server.readiness import handler_facts

ROUNDS = 5
MOST_TOGETHER = 32


@dataclass(frozen=True)
class Probe:
    """The answer to one example.

    Attributes:
        latency_ms: time from sending to the end of the reply, in milliseconds.
        answered: whether there was an answer, right or wrong, and not a refusal.
        problem: how it differs from the validated reply; None if it agrees.
    """

    latency_ms: float
    answered: bool
    problem: str | None


@dataclass(frozen=True)
class Prober:
    """Sends examples to the versions of one model.

    Attributes:
        client: of the server.
        model: model name.
        examples: examples of the archive that is deployed.
        refused: number of replies of 400 and above, by version and by hundreds of the status.
    """

    client: Client
    model: str
    examples: tuple[StoredExample, ...]
    refused: Counter[tuple[str, int]] = field(default_factory=Counter)

    def ask(self, version: str, example: StoredExample) -> Probe:
        """Send one example to one version."""
        expected, started, answered = example.expected, time.perf_counter(), False
        try:
            reply = self.client.predict(
                self.model, example.body, version=version, content_type=expected.content_type or None
            )
            answered, problem = True, self._problem(version, example, reply.status, reply.body)
        except RequestRejectedError as error:
            problem = self._problem(version, example, error.status, error.body)
            self.refused[version, error.status // 100] += 1
        except ClientError as error:
            problem = error.message
        latency_ms = (time.perf_counter() - started) * 1000
        # A server's JSON may span several lines.
        shown = f"example {expected.input}: {' '.join(problem.split())}" if problem else None
        return Probe(latency_ms, answered, shown)

    def _problem(self, version: str, example: StoredExample, status: int, body: bytes) -> str | None:
        return example.judge(status, body, lambda: handler_facts(self.client, self.model, version)).problem

    def predict_each(self, version: str) -> str | None:
        """Send every example alone; return the first problem."""
        return _first_problem(self.ask(version, example) for example in self.examples)

    def ask_together(self, status: VersionStatus) -> str | None:
        """Fill batches of the version: send examples concurrently, twice. Return the first problem."""
        count = together(status)
        if not self.examples or count < 2:
            return None
        with ThreadPoolExecutor(count) as pool:
            asked = [self.examples[i % len(self.examples)] for i in range(2 * count)]
            problem = _first_problem(pool.map(lambda example: self.ask(status.model_version, example), asked))
        return f"{problem} (with {count} at the same time)" if problem else None

    def compare(self, old: str, new: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Send the same examples to both versions in turn. Return the latencies of their answers, in milliseconds.

        The old version may give other answers than the new one.
        """
        before: list[float] = []
        after: list[float] = []
        for i in range(ROUNDS if self.examples else 0):
            for version, latencies in ((old, before), (new, after)):
                probe = self.ask(version, self.examples[i % len(self.examples)])
                latencies += [probe.latency_ms] if probe.answered else []
        return tuple(before), tuple(after)


def together(status: VersionStatus) -> int:
    """Return the number of concurrent requests that fill a batch of every worker without filling the job queue."""
    wanted = max(2, status.batch_size * max(1, status.ready_workers))
    return max(1, min(wanted, MOST_TOGETHER, status.queue_remaining))


def _first_problem(probes: Iterable[Probe]) -> str | None:
    return next((probe.problem for probe in probes if probe.problem), None)
