"""Load driver: closed and open loops, and arrivals.

In a closed loop each client waits for its reply before it sends its next request. In an open loop requests are sent
when they are due, whether or not earlier ones have been answered.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from marsmith.loadtest.connection import Answer, Connection, OpenConnection

MAX_CONNECTIONS = 512


@dataclass(frozen=True)
class LatencySample:
    """One request. All times are in seconds since the start of the run.

    Attributes:
        due: when it should have been sent; the same as ``sent`` in a closed loop.
        sent: when it was sent.
        done: when its reply was complete.
        body: index of the input.
        verdict: ``ok``, or a short description of the failure.
    """

    due: float
    sent: float
    done: float
    body: int
    verdict: str

    @property
    def latency_s(self) -> float:
        """Time from due to done, in seconds."""
        return self.done - self.due


@dataclass(frozen=True)
class LoadRun:
    """The samples of one run.

    Attributes:
        samples: in the order of their replies.
        seconds: duration from the first request to the last reply.
        driver_cpu: share of one core that the driver used, 0 to 1.
    """

    samples: tuple[LatencySample, ...]
    seconds: float
    driver_cpu: float


Check = Callable[[int, Answer], Answer]


class _Run:
    """The samples and the clock of a run in progress."""

    def __init__(self, bodies: int, check: Check | None) -> None:
        self._numbers = count()
        self._bodies = bodies
        self._check = check
        self.samples: list[LatencySample] = []
        self._start = time.perf_counter()
        self._cpu = time.process_time()

    def now(self) -> float:
        return time.perf_counter() - self._start

    async def send(self, connection: Connection, due: float | None = None) -> LatencySample:
        body = next(self._numbers) % self._bodies
        sent = self.now()
        answer = await connection.call(body)
        done = self.now()
        if self._check and answer.is_ok:
            answer = self._check(body, answer)
        sample = LatencySample(sent if due is None else due, sent, done, body, answer.verdict)
        self.samples.append(sample)
        return sample

    def result(self) -> LoadRun:
        seconds = self.now()
        return LoadRun(tuple(self.samples), seconds, (time.process_time() - self._cpu) / seconds if seconds else 0.0)


async def closed_loop(
    open_connection: OpenConnection, bodies: int, *, clients: int, seconds: float, check: Check | None = None
) -> LoadRun:
    """Run ``clients`` for ``seconds``; each sends one request after the other. Waits for the requests still in flight.

    Args:
        open_connection: opens a connection.
        bodies: number of inputs; they are sent in turn.
        clients: number of connections, each with one request at a time.
        seconds: duration in which requests are started.
        check: judges each good answer and may replace it by a failure.
    """
    connections = [await open_connection() for _ in range(clients)]

    async def client(run: _Run, connection: Connection) -> None:
        while run.now() < seconds:
            sample = await run.send(connection)
            if sample.verdict != "ok" and sample.done - sample.sent < 0.01:
                # Without a pause, a server that refuses at once would get requests as fast as the driver can send them.
                await asyncio.sleep(0.01)

    async def all_of_them(run: _Run) -> None:
        await asyncio.gather(*(client(run, connection) for connection in connections))

    return await _drive(connections, bodies, check, all_of_them)


async def open_loop(
    open_connection: OpenConnection,
    bodies: int,
    *,
    due: Sequence[float],
    check: Check | None = None,
    max_connections: int = MAX_CONNECTIONS,
    first_connections: int = 8,
) -> LoadRun:
    """Send a request at each time of ``due``, in seconds since the start, whether or not others are answered.

    A request that is due takes a free connection or opens a new one, up to ``max_connections``. Beyond that it waits
    for a free one, and the wait counts as latency.
    """
    connections = [await open_connection() for _ in range(min(first_connections, max_connections))]
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for connection in connections:
        free.put_nowait(connection)
    opening = asyncio.Lock()

    async def take() -> Connection:
        if free.empty():
            async with opening:
                if free.empty() and len(connections) < max_connections:
                    connections.append(await open_connection())
                    return connections[-1]
        return await free.get()

    async def one(run: _Run, moment: float) -> None:
        connection = await take()
        try:
            await run.send(connection, moment)
        finally:
            free.put_nowait(connection)

    async def all_of_them(run: _Run) -> None:
        running: set[asyncio.Task[None]] = set()
        for moment in due:
            wait = moment - run.now()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one(run, moment))
            running.add(task)
            task.add_done_callback(running.discard)
        while running:
            await asyncio.gather(*running)

    return await _drive(connections, bodies, check, all_of_them)


async def _drive(
    connections: Sequence[Connection], bodies: int, check: Check | None, work: Callable[[_Run], Awaitable[None]]
) -> LoadRun:
    gc.collect()
    gc.freeze()
    run = _Run(bodies, check)
    try:
        await work(run)
        return run.result()
    finally:
        gc.unfreeze()
        await asyncio.gather(*(connection.close() for connection in connections))


Kind = Literal["poisson", "constant"]


def arrivals(kind: Kind, rate: float, seconds: float, *, seed: int = 0) -> list[float]:
    """Return when requests are due, in seconds since the start, ascending, all below ``seconds``.

    Args:
        kind: ``poisson``: independent users, exponential gaps; ``constant``: one request every 1 / rate seconds.
        rate: mean requests per second.
        seconds: duration.
        seed: seed of the gaps; the same seed gives the same arrivals.
    """
    if kind == "constant":
        return [index / rate for index in range(int(rate * seconds))]
    gaps = random.Random(seed)  # noqa: S311, no secret
    due: list[float] = []
    now = gaps.expovariate(rate)
    while now < seconds:
        due.append(now)
        now += gaps.expovariate(rate)
    return due
