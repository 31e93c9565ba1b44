"""Driving load: closed loops, where each client waits for its answer, and an open one, where requests come when due.

When requests are due in an open loop: they come whether or not earlier ones have been answered.
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

from marsmith.loadtest.lane import Answer, Connection, OpenLane

MAX_CONNECTIONS = 512


@dataclass(frozen=True)
class LatencySample:
    """One request, all times in seconds from the start.

    Attributes:
        due: when it should have been sent; in a closed loop when it was.
        sent: when it was sent.
        done: when its answer was whole.
        body: index of the input.
        verdict: ``ok``, or what went wrong.
    """

    due: float
    sent: float
    done: float
    body: int
    verdict: str

    @property
    def latency_s(self) -> float:
        """From when it was due to when it was answered, in seconds."""
        return self.done - self.due


@dataclass(frozen=True)
class LoadRun:
    """What one run gave.

    Attributes:
        samples: in the order of their answers.
        seconds: how long the run took, from the first request to the last answer.
        driver_cpu: share of one core that the driver itself used, 0 to 1.
    """

    samples: tuple[LatencySample, ...]
    seconds: float
    driver_cpu: float


Check = Callable[[int, Answer], Answer]


class _Run:
    """The samples of one run, and its clock."""

    def __init__(self, bodies: int, check: Check | None) -> None:
        self._numbers = count()
        self._bodies = bodies
        self._check = check
        self.samples: list[LatencySample] = []
        self._start = time.perf_counter()
        self._cpu = time.process_time()

    def now(self) -> float:
        return time.perf_counter() - self._start

    async def send(self, lane: Connection, due: float | None = None) -> LatencySample:
        body = next(self._numbers) % self._bodies
        sent = self.now()
        answer = await lane.call(body)
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
    open_lane: OpenLane, bodies: int, *, clients: int, seconds: float, check: Check | None = None
) -> LoadRun:
    """Let ``clients`` send one request after the other for ``seconds``; those under way at the end are waited for.

    Args:
        open_lane: opens a connection.
        bodies: how many inputs there are; they are sent in turn.
        clients: how many connections, each with a request at a time.
        seconds: how long requests are begun.
        check: looks at each good answer and may call it bad.
    """
    lanes = [await open_lane() for _ in range(clients)]

    async def client(run: _Run, lane: Connection) -> None:
        while run.now() < seconds:
            sample = await run.send(lane)
            if sample.verdict != "ok" and sample.done - sample.sent < 0.01:
                # A server that refuses at once would be asked as fast as the driver can.
                await asyncio.sleep(0.01)

    async def all_of_them(run: _Run) -> None:
        await asyncio.gather(*(client(run, lane) for lane in lanes))

    return await _drive(lanes, bodies, check, all_of_them)


async def open_loop(
    open_lane: OpenLane,
    bodies: int,
    *,
    due: Sequence[float],
    check: Check | None = None,
    most_lanes: int = MAX_CONNECTIONS,
    first_lanes: int = 8,
) -> LoadRun:
    """Send a request at each time of ``due``, in seconds from the start, whether or not others are answered.

    A request that is due takes a free connection or opens one more, up to ``most_lanes``; beyond that it waits for one,
    and the wait counts as latency.
    """
    lanes = [await open_lane() for _ in range(min(first_lanes, most_lanes))]
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for lane in lanes:
        free.put_nowait(lane)
    opening = asyncio.Lock()

    async def take() -> Connection:
        if free.empty():
            async with opening:
                if free.empty() and len(lanes) < most_lanes:
                    lanes.append(await open_lane())
                    return lanes[-1]
        return await free.get()

    async def one(run: _Run, moment: float) -> None:
        lane = await take()
        try:
            await run.send(lane, moment)
        finally:
            free.put_nowait(lane)

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

    return await _drive(lanes, bodies, check, all_of_them)


async def _drive(
    lanes: Sequence[Connection], bodies: int, check: Check | None, work: Callable[[_Run], Awaitable[None]]
) -> LoadRun:
    gc.collect()
    gc.freeze()
    run = _Run(bodies, check)
    try:
        await work(run)
        return run.result()
    finally:
        gc.unfreeze()
        await asyncio.gather(*(lane.close() for lane in lanes))


Kind = Literal["poisson", "constant"]


def arrivals(kind: Kind, rate: float, seconds: float, *, seed: int = 0) -> list[float]:
    """Return when requests are due, in seconds from the start, ascending, all below ``seconds``.

    Args:
        kind: ``poisson``: independent users, the gaps are exponential; ``constant``: one every 1 / rate.
        rate: mean requests per second.
        seconds: how long.
        seed: of the gaps; the same seed gives the same arrivals.
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
