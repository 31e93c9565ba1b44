"""How waiting requests are shared out over workers: pure decisions, made once for each turn of the event loop.

An idle worker gets requests at once, so a lone request never waits for others. Batches form while workers are busy.
What waits is shared out evenly over all idle workers, because two workers with four requests each are done sooner than
one with eight. A busy worker gets a batch ahead only if all busy workers can get a full one: it could not grow any more
while it waited, and no worker gets idle without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Batches that a worker holds at most: one in work, and one that waits in it.
MOST_HELD = 2


class Share(NamedTuple):
    """The next batch: the worker's place in the list, and the number of requests that it gets."""

    worker: int
    requests: int


def next_share(waiting: int, held: Sequence[int], batch_size: int) -> Share | None:
    """Decide which worker gets a batch now; None: nobody does.

    Args:
        waiting: number of waiting requests.
        held: number of batches that each ready worker holds.
        batch_size: largest size of a batch.
    """
    if not waiting:
        return None
    idle = [place for place, batches in enumerate(held) if batches == 0]
    if idle:
        return Share(idle[0], min(batch_size, -(-waiting // len(idle))))
    busy = [place for place, batches in enumerate(held) if batches < MOST_HELD]
    if busy and waiting >= batch_size * len(busy):
        return Share(busy[0], batch_size)
    return None
