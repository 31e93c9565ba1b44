"""Retries: which failures are safe to retry, the pauses between attempts, and recent durations of answers.

A failure is safe to retry if the request was certainly not processed: the server does not accept connections, the job
queue is full, or there is no worker yet. If a worker or a connection was lost, the request may have been processed. It
is then sent again only if processing it twice is safe, and only a few times, because the request itself may be the
reason for the loss. Every call has one deadline for all attempts and pauses.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from marsmith.client.failures import is_worker_loss
from marsmith.errors import (
    ClientError,
    ConnectionFailedError,
    DeadlineError,
    NoWorkerError,
    OverloadedError,
    RequestRejectedError,
)


class Failure(Enum):
    """Reasons for a retry."""

    UNREACHABLE = "nothing listens"
    OVERLOADED = "the job queue is full"
    NO_WORKER = "the workers are being started"
    # In the following cases the request may have been processed.
    BROKEN = "the connection broke"
    WORKER_LOST = "the worker died"
    SILENT = "no answer for much longer than usual"


SURELY_NOT_EXECUTED = frozenset({Failure.UNREACHABLE, Failure.OVERLOADED, Failure.NO_WORKER})


@dataclass(frozen=True)
class RetryPolicy:
    """Policy for retries, within the deadline of the call.

    Attributes:
        attempts: maximum number of attempts; None: as many as the deadline allows.
        resends: maximum number of retries after failures in which the request may have been processed.
        unreachable_s: maximum wait for a server to accept connections, in seconds.
        pause_s: upper bound of the first pause, in seconds; it doubles each time. The pause is drawn uniformly from 0
            to the bound, so that clients that failed together do not retry together.
        longest_pause_s: maximum of the upper bound, in seconds.
        retried: failures after which a call is retried.
    """

    attempts: int | None = None
    resends: int = 2
    unreachable_s: float = 2.0
    pause_s: float = 0.05
    longest_pause_s: float = 1.0
    retried: frozenset[Failure] = field(default=frozenset(Failure))

    def bound_s(self, pauses: int) -> float:
        """Return the upper bound of the next pause after ``pauses`` pauses, in seconds."""
        return min(self.longest_pause_s, self.pause_s * 2.0 ** min(pauses, 30))


NO_RETRIES = RetryPolicy(attempts=1)


@dataclass(frozen=True)
class AttemptState:
    """State of a call between its attempts.

    Attributes:
        sent: number of attempts.
        uncertain: number of failures after which the request may have been processed.
        elapsed_s: seconds since the start of the call.
        left_s: seconds until its deadline.
    """

    sent: int
    uncertain: int
    elapsed_s: float
    left_s: float


def kind_of(error: ClientError) -> Failure | None:
    """Return the reason to retry after an error; None if a retry would fail too."""
    if isinstance(error, ConnectionFailedError):
        return Failure.UNREACHABLE if error.refused else Failure.BROKEN if error.sent else None
    if isinstance(error, OverloadedError):
        return Failure.OVERLOADED
    if isinstance(error, NoWorkerError):
        return Failure.NO_WORKER if error.restarting else None
    if isinstance(error, DeadlineError):
        return Failure.SILENT
    if isinstance(error, RequestRejectedError) and is_worker_loss(error.status, error.body):
        return Failure.WORKER_LOST
    return None


def next_pause_s(
    policy: RetryPolicy, error: ClientError, tries: AttemptState, *, idempotent: bool, chance: float
) -> float | None:
    """Decide whether a failed call is retried.

    Args:
        policy: policy for retries.
        error: the failure.
        tries: state of the call, including this failure.
        idempotent: whether processing the request twice is safe.
        chance: a random number from 0 to 1.

    Returns:
        The pause before the next attempt, in seconds; None if ``error`` is final.
    """
    kind = kind_of(error)
    if kind is None or kind not in policy.retried or tries.sent == policy.attempts:
        return None
    if kind not in SURELY_NOT_EXECUTED and not (idempotent and tries.uncertain <= policy.resends):
        return None
    if kind is Failure.UNREACHABLE and tries.elapsed_s >= policy.unreachable_s:
        return None
    pause = chance * policy.bound_s(tries.sent - 1)
    if isinstance(error, OverloadedError):
        pause += error.retry_after_s
    return pause if pause < tries.left_s else None


# Number of recent answers of a version to consider.
REMEMBERED = 64
# A reply counts as lost after this multiple of the slowest recent answer ...
SILENCE_FACTOR = 10.0
# ... but not sooner than this, in seconds.
SHORTEST_SILENCE_S = 10.0
# Fewer answers are not a sample.
ENOUGH = 8
# Wait after a full job queue if durations are unknown, and the bounds if they are known, in seconds.
RETRY_AFTER_S = 0.5
SHORTEST_RETRY_AFTER_S = 0.02
LONGEST_RETRY_AFTER_S = 5.0


def silence_s(seconds: Sequence[float]) -> float | None:
    """Return the maximum wait for a reply before it counts as lost, in seconds; None if too little is known.

    TorchServe loses requests without a reply if a worker dies while it collects a batch.
    """
    return None if len(seconds) < ENOUGH else max(SHORTEST_SILENCE_S, SILENCE_FACTOR * max(seconds))


def retry_after_s(seconds: Sequence[float], pending: int, in_hand: int) -> float:
    """Return the time until half of a full job queue is answered, in seconds.

    Args:
        seconds: recent durations of answers of the version, including their wait, in seconds.
        pending: number of requests in its queue.
        in_hand: maximum number of requests in its workers.
    """
    if len(seconds) < ENOUGH:
        return RETRY_AFTER_S
    # The duration of an answer covers all requests before it, so this many requests are answered in that time.
    usual = sorted(seconds)[len(seconds) // 2]
    half = usual * (pending / 2) / max(1, pending + in_hand)
    return min(LONGEST_RETRY_AFTER_S, max(SHORTEST_RETRY_AFTER_S, half))


class Pace:
    """Recent durations of answers by model and version; may be used by several threads."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str | None], deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._lock = threading.Lock()

    def note(self, model: str, version: str | None, seconds: float) -> None:
        """Record the duration of an answer, in seconds."""
        with self._lock:
            self._seconds[model, version].append(seconds)

    def seconds(self, model: str, version: str | None) -> list[float]:
        """Return the recent durations of answers, in seconds."""
        with self._lock:
            return list(self._seconds.get((model, version), ()))
