"""When a call is sent again: which failures are safe, how long to wait between, and when to give up.

A failure is safe to repeat where the request was surely not worked on: nothing listens, the job queue was full, there
is no worker yet. Where it may have been, because a worker or a connection was lost on the way, it is sent again only if
working on it twice does no harm, and only a few times: it may be the request itself that ends the workers.
Every call has one deadline, and all its attempts and pauses lie before it.

How fast the versions of a server have answered lately, as one client saw it.
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
    """Why a call may be sent again."""

    UNREACHABLE = "nothing listens"
    OVERLOADED = "the job queue is full"
    NO_WORKER = "the workers are being started"
    # From here on the request may have been worked on.
    BROKEN = "the connection broke"
    WORKER_LOST = "the worker died"
    SILENT = "no answer for much longer than usual"


SURELY_NOT_EXECUTED = frozenset({Failure.UNREACHABLE, Failure.OVERLOADED, Failure.NO_WORKER})


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how patiently a call is sent again; the deadline of the call bounds it all.

    Attributes:
        attempts: how often a call is sent at most; None: as often as its deadline allows.
        resends: how often it is sent again after failures in which it may have been worked on.
        unreachable_s: how long to wait for a server to listen at all, in seconds.
        pause_s: bound of the first pause, in seconds; it doubles with each. The pause itself is drawn evenly from
            nothing to the bound, so that clients that failed together do not come back together.
        longest_pause_s: where the doubling stops.
        retried: the failures after which a call is sent again.
    """

    attempts: int | None = None
    resends: int = 2
    unreachable_s: float = 2.0
    pause_s: float = 0.05
    longest_pause_s: float = 1.0
    retried: frozenset[Failure] = field(default=frozenset(Failure))

    def bound_s(self, pauses: int) -> float:
        """Return the bound of the next pause after so many, in seconds."""
        return min(self.longest_pause_s, self.pause_s * 2.0 ** min(pauses, 30))


NO_RETRIES = RetryPolicy(attempts=1)


@dataclass(frozen=True)
class AttemptState:
    """What one call has been through.

    Attributes:
        sent: how often it has been sent.
        uncertain: how many of its failures left open whether it had been worked on.
        elapsed_s: seconds since it began.
        left_s: seconds until its deadline.
    """

    sent: int
    uncertain: int
    elapsed_s: float
    left_s: float


def kind_of(error: ClientError) -> Failure | None:
    """Return what a failure means for sending again; None: it would only fail again."""
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
    """Decide whether a call that failed is sent again.

    Args:
        policy: how patient to be.
        error: the failure.
        tries: what the call has been through, this failure included.
        idempotent: whether working on it twice does no harm.
        chance: a random number from 0 to 1.

    Returns:
        The pause before the next attempt, in seconds; None where ``error`` is final.
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


# How many answers of a version count as lately.
REMEMBERED = 64
# A reply that takes so many times longer than the slowest one lately is lost ...
SILENCE_FACTOR = 10.0
# ... but none is given up sooner than this, in seconds.
SHORTEST_SILENCE_S = 10.0
# Fewer answers than this say nothing.
ENOUGH = 8
# When to try again after a full job queue, where nothing is known, and the bounds where something is, in seconds.
RETRY_AFTER_S = 0.5
SHORTEST_RETRY_AFTER_S = 0.02
LONGEST_RETRY_AFTER_S = 5.0


def silence_s(seconds: Sequence[float]) -> float | None:
    """Return how long to wait for a reply before it counts as lost; None where too little is known.

    TorchServe loses requests without a word when a worker dies while it gathers a batch.
    """
    return None if len(seconds) < ENOUGH else max(SHORTEST_SILENCE_S, SILENCE_FACTOR * max(seconds))


def retry_after_s(seconds: Sequence[float], pending: int, in_hand: int) -> float:
    """Return in how long half of a full job queue will have been answered.

    Args:
        seconds: how long the version's answers took lately, waiting included.
        pending: requests in its queue.
        in_hand: requests that its workers have taken, at most.
    """
    if len(seconds) < ENOUGH:
        return RETRY_AFTER_S
    # An answer comes after all that stood before it: so many requests are answered in that time.
    usual = sorted(seconds)[len(seconds) // 2]
    half = usual * (pending / 2) / max(1, pending + in_hand)
    return min(LONGEST_RETRY_AFTER_S, max(SHORTEST_RETRY_AFTER_S, half))


class Pace:
    """How long answers took, by model and version; may be used by several threads."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str | None], deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._lock = threading.Lock()

    def note(self, model: str, version: str | None, seconds: float) -> None:
        """Remember that an answer took ``seconds``."""
        with self._lock:
            self._seconds[model, version].append(seconds)

    def seconds(self, model: str, version: str | None) -> list[float]:
        """Return how long the last answers took, in seconds."""
        with self._lock:
            return list(self._seconds.get((model, version), ()))
