"""How fast the versions of a server have answered lately, as one client saw it."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Sequence

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
