"""Whether a request is taken: pure decisions, before any work is spent on it.

A request is refused if the queue is full, or if it cannot be answered in time. The expected time is a lower bound: what
waits before it, in full batches over all workers, each as long as recent ones. So a request is never refused that would
have been in time at that pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Weight of the newest batch in the mean.
_NEWEST = 0.2
# A batch of fewer than this is not a sample.
_ENOUGH = 8
SHORTEST_RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Refusal:
    """Why a request is not taken, and after how many seconds another attempt is useful."""

    status: int
    message: str
    retry_after_s: int


@dataclass
class Pace:
    """Duration of recent batches, in seconds."""

    mean_s: float = 0.0
    batches: int = field(default=0, repr=False)

    def note(self, seconds: float) -> None:
        """Add the duration of a batch."""
        self.batches += 1
        weight = max(_NEWEST, 1 / self.batches)
        self.mean_s += weight * (seconds - self.mean_s)

    def expected_s(self, ahead: int, workers: int, batch_size: int) -> float:
        """Return the least time until a request is answered, in seconds; 0 while too little is known.

        Args:
            ahead: number of requests that wait before it.
            workers: number of workers.
            batch_size: largest size of a batch.
        """
        if self.batches < _ENOUGH or not workers:
            return 0.0
        return self.mean_s * math.ceil((ahead + 1) / (workers * batch_size))


def refuse(
    *, waiting: int, queue_size: int, workers: int, batch_size: int, pace: Pace, left_s: float
) -> Refusal | None:
    """Decide whether a request is refused; None: it is taken.

    Args:
        waiting: number of waiting requests.
        queue_size: largest number of these.
        workers: number of ready workers.
        batch_size: largest size of a batch.
        pace: duration of recent batches.
        left_s: seconds until the request's deadline; infinite without one.
    """
    expected_s = pace.expected_s(waiting, workers, batch_size)
    if waiting >= queue_size:
        return Refusal(429, f"the job queue is full: {waiting} requests wait", _whole(expected_s / 2))
    if left_s <= 0:
        return Refusal(503, "the deadline has passed", _whole(0.0))
    if expected_s > left_s:
        told = f"the request cannot be answered in time: {waiting} requests wait, {expected_s * 1000:.0f} ms"
        return Refusal(503, f"{told}, and its deadline is in {left_s * 1000:.0f} ms", _whole(expected_s))
    return None


def _whole(seconds: float) -> int:
    return max(SHORTEST_RETRY_AFTER_S, math.ceil(seconds))
