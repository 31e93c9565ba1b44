"""Simulation of TorchServe's batching, to predict set-ups without a server.

It follows ``BatchAggregator`` and ``Model.pollBatch`` of TorchServe 0.12. One worker at a time holds the model's lock.
It waits for a first job, then takes further ones until the batch is full or the delay since the first job has passed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from marsmith.loadtest.driver import arrivals
from marsmith.loadtest.measurement import quantile

# Enough for a 99th percentile, and few enough to predict a hundred set-ups in seconds.
REQUESTS = 1500
BISECTIONS = 8


def latencies(
    due: Sequence[float], service_s: Callable[[int], float], *, workers: int, batch_size: int, max_batch_delay_s: float
) -> list[float]:
    """Return the time of each request from its arrival to its reply, in seconds.

    Args:
        due: arrival times, ascending, in seconds.
        service_s: time of a batch of the given size in one worker while the others are busy, in seconds.
        workers: number of workers.
        batch_size: maximum number of requests in a batch.
        max_batch_delay_s: maximum wait for a batch to fill, in seconds.
    """
    free = [0.0] * workers
    lock_free, first, taken = 0.0, 0, []
    while first < len(due):
        picked_up = max(heapq.heappop(free), lock_free, due[first])
        end, last = picked_up + max_batch_delay_s, first + 1
        while last < len(due) and last - first < batch_size and due[last] <= end:
            last += 1
        full = last - first == batch_size
        lock_free = max(picked_up, due[last - 1]) if full else end
        done = lock_free + service_s(last - first)
        heapq.heappush(free, done)
        taken += [done - moment for moment in due[first:last]]
        first = last
    return taken


def predicted_rate(
    service_s: Callable[[int], float], *, workers: int, batch_size: int, max_batch_delay_s: float, p99_s: float
) -> float:
    """Return the largest rate of Poisson arrivals, per second, whose 99th percentile is within ``p99_s``.

    0 if there is none.
    """

    def holds(rate: float) -> bool:
        due = arrivals("poisson", rate, REQUESTS / rate)
        seconds = latencies(due, service_s, workers=workers, batch_size=batch_size, max_batch_delay_s=max_batch_delay_s)
        return bool(seconds) and quantile(sorted(seconds), 0.99) <= p99_s

    most = workers * max(size / service_s(size) for size in range(1, batch_size + 1))
    least = 0.02 * most
    if not holds(least):
        return 0.0
    low, high = least, most
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
