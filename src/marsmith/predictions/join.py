"""Join the replies of two versions to the same request."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from marsmith.predictions.log import Prediction

# What waits for its counterpart, as bytes of replies; a line counts at least as much as its own fields.
MOST_WAITING_BYTES = 64 * 1024 * 1024
_LINE_BYTES = 1024

_Key = tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """The same request, answered by two versions."""

    old: Prediction
    new: Prediction


class Joiner:
    """Joins predictions by key and digest of the body, as they come, in bounded memory.

    The digest distinguishes requests to which a client has given the same id. Of several equal ones the first of one
    version belongs to the first of the other.

    Attributes:
        unmatched: predictions of the old and of the new version that were given up, because too many waited.
    """

    def __init__(self, old: str, new: str, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._versions = (old, new)
        self._most_bytes = most_bytes
        self._waiting: tuple[OrderedDict[_Key, deque[Prediction]], ...] = (OrderedDict(), OrderedDict())
        self._bytes = 0
        self.unmatched = [0, 0]

    @property
    def waiting(self) -> tuple[int, int]:
        """Predictions of the old and of the new version without a counterpart yet."""
        old, new = (sum(map(len, waiting.values())) for waiting in self._waiting)
        return old, new

    def add(self, prediction: Prediction) -> Pair | None:
        """Add one prediction; return the pair that it completes."""
        if prediction.version not in self._versions:
            return None
        side = self._versions.index(prediction.version)
        key = (prediction.key, prediction.input_sha256)
        if key in self._waiting[1 - side]:
            other = self._taken(1 - side, key)
            return Pair(other, prediction) if side else Pair(prediction, other)
        self._waiting[side].setdefault(key, deque()).append(prediction)
        self._bytes += _size(prediction)
        while self._bytes > self._most_bytes:
            self._give_up()
        return None

    def _taken(self, side: int, key: _Key) -> Prediction:
        waiting = self._waiting[side][key]
        found = waiting.popleft()
        if not waiting:
            del self._waiting[side][key]
        self._bytes -= _size(found)
        return found

    def _give_up(self) -> None:
        """Drop the oldest one that waits."""
        oldest = [(next(iter(waiting.items())), side) for side, waiting in enumerate(self._waiting) if waiting]
        (key, _), side = min(oldest, key=lambda each: each[0][1][0].time)
        self._taken(side, key)
        self.unmatched[side] += 1


def _size(prediction: Prediction) -> int:
    return _LINE_BYTES + prediction.reply_bytes
