"""The workers of one version: a queue, batches for idle workers, and new workers in place of lost ones.

A worker that dies, or that takes longer than the response timeout, is replaced. What it had not begun goes back to the
front of the queue. What it worked on is tried once more, each request alone, if the handler says that it may be
processed twice: one of these requests may be the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from marsmith.client.failures import TOO_MANY
from marsmith.errors import MarsmithError
from marsmith.host import admission, batching
from marsmith.host.frames import Frame
from marsmith.host.link import Link, exit_words
from marsmith.host.measured import Measured
from marsmith.host.messages import UNAVAILABLE, Job, Reply
from marsmith.host.version import HostedVersion
from marsmith.runtime.frontend import WORKER_DIED

# Attempts of a request, if a worker is lost with it in work.
_MOST_LOST = 2
_WATCH_S = 0.5
# Pauses before a worker is started again that does not load, in seconds.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_LEAK_FACTOR, _LEAK_LEAST = 4, 1 << 30


@dataclass(frozen=True)
class PoolStatus:
    """State of a pool.

    Attributes:
        workers: process id of each worker, whether it is ready, and its resident memory in bytes.
        waiting: number of waiting requests.
        restarts: number of workers that were started in place of others.
    """

    workers: tuple[tuple[int, bool, int], ...]
    waiting: int
    restarts: int


class Pool:
    """The queue and the workers of one version."""

    def __init__(
        self, version: HostedVersion, measured: Measured, tell: Callable[[str], None], log_folder: Path | None = None
    ) -> None:
        self.version = version
        self._measured = measured
        self._tell = tell
        self._log_folder = log_folder
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Job] = deque()
        self._links: list[Link] = []
        self._limits: dict[Link, int] = {}
        # Others take their places already.
        self._retiring: set[Link] = set()
        self._pace = admission.Pace()
        self._restarts = 0
        self._is_scheduled = False
        self._is_closing = False
        # Whether workers do not load any more: without one that is ready, nothing is taken then.
        self._is_failing = False
        self._emptied = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start all workers, and return when all are ready.

        Raises:
            HandlerError: one of them does not load; none is left running.
            OSError: there is no room for a process.
        """
        for _ in range(self.version.workers):
            self._links.append(self._new_link())
        starts = [asyncio.ensure_future(link.start()) for link in self._links]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.end()
            raise
        for link in self._links:
            self._limits[link] = self._memory_limit(link)
        self._run(self._watch())

    def submit(self, job: Job) -> None:
        """Take a job, or answer it with the reason why not."""
        ready = sum(link.ready for link in self._links)
        if not ready and (self._is_failing or self._is_closing):
            job.fail(503, self._no_worker(), UNAVAILABLE)
            return
        refusal = admission.refuse(
            waiting=len(self._queue),
            queue_size=self.version.queue_size,
            workers=ready,
            batch_size=self.version.batch_size,
            pace=self._pace,
            left_s=job.deadline - job.arrived,
        )
        if refusal is not None:
            _refuse(job, self.version, refusal)
            return
        self._queue.append(job)
        self._schedule()

    def status(self) -> PoolStatus:
        """Return the state for a description."""
        return PoolStatus(
            tuple((link.pid, link.ready, _memory(link)) for link in self._links), len(self._queue), self._restarts
        )

    @property
    def is_ready(self) -> bool:
        """Whether a worker can answer."""
        return any(link.ready for link in self._links)

    async def drain(self, timeout_s: float) -> None:
        """Answer what has been taken, then end all workers; what is not answered in time fails."""
        self._is_closing = True
        self._check_emptied()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), timeout_s)
        await self.end()

    async def end(self) -> None:
        """End all workers now."""
        self._is_closing = True
        links, self._links = self._links, []
        for task in self._tasks:
            task.cancel()
        for job in [*self._queue, *(job for link in links for batch in link.held for job in batch)]:
            job.fail(503, "Worker scaled down.")
        self._queue.clear()
        for link in links:
            link.held.clear()
        await asyncio.gather(*(link.end() for link in links), *self._tasks, return_exceptions=True)

    # What workers tell ------------------------------------------------------------------------------------------------

    def answered(self, link: Link, frame: Frame) -> None:
        """Pass replies on to their senders."""
        self._measured.take(frame.head.get("metrics", ()))
        replies = list(zip(frame.head["replies"], frame.blocks, strict=True))
        if frame.kind == "part":
            for job, (head, body) in zip(link.held[0], replies, strict=False):
                job.part(_reply(head, body))
            return
        # Kept until all are answered: replies that do not fit cost the worker, and another one answers.
        batch, now = link.held[0], time.monotonic()
        self._pace.note(now - batch[0].sent)
        for job, (head, body) in zip(batch, replies, strict=True):
            self._answer(job, head, body, now)
        link.held.popleft()
        if link.held:
            for job in link.held[0]:
                job.sent = now
        self._schedule()
        self._check_emptied()

    def lost(self, link: Link) -> None:
        """Sort out what a lost worker held, and start another."""
        if link not in self._links:
            return
        self._links.remove(link)
        self._limits.pop(link, None)
        begun, waiting = (link.held[0] if link.held else []), [job for batch in list(link.held)[1:] for job in batch]
        link.held.clear()
        self._queue.extendleft(reversed(waiting))
        for job in reversed(begun):
            job.lost += 1
            if job.idempotent and job.lost < _MOST_LOST and job.stream is None:
                self._queue.appendleft(job)
            else:
                job.fail(500, WORKER_DIED)
        if link not in self._retiring:
            self._run(self._replace(link))
        self._schedule()
        self._check_emptied()

    # -----------------------------------------------------------------------------------------------------------------

    def _answer(self, job: Job, head: dict[str, object], body: bytes, now: float) -> None:
        failed = head.get("failed")
        if isinstance(failed, list):
            job.fail(*failed)
        else:
            job.answer(_reply(head, body))
        self._measured.request(*self.version.id, now - job.arrived, job.sent - job.arrived)

    def _schedule(self) -> None:
        """Share out what waits at the end of this turn of the loop, with all that arrives in it."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._share_out)

    def _share_out(self) -> None:
        self._is_scheduled = False
        self._drop_late()
        ready = [link for link in self._links if link.ready]
        while share := batching.next_share(
            len(self._queue), [len(each.held) for each in ready], self.version.batch_size
        ):
            ready[share.worker].send(self._next_jobs(share.requests))

    def _next_jobs(self, count: int) -> list[Job]:
        """Take jobs from the queue; one that has lost a worker goes alone."""
        jobs = [self._queue.popleft()]
        while len(jobs) < count and not jobs[0].lost and not self._queue[0].lost:
            jobs.append(self._queue.popleft())
        return jobs

    def _drop_late(self) -> None:
        """Refuse what nobody waits for any more, before work is spent on it."""
        now = time.monotonic()
        late = [job for job in self._queue if job.deadline <= now or job.reply.cancelled()]
        for job in late:
            self._queue.remove(job)
            if not job.reply.cancelled():
                _refuse(job, self.version, admission.Refusal(503, "the deadline has passed in the queue", 1))

    def _check_emptied(self) -> None:
        if self._is_closing and not self._queue and not any(link.held for link in self._links):
            self._emptied.set()

    async def _replace(self, link: Link) -> None:
        await link.end()
        self._tell(f"{self.version.id}: worker {link.pid} is lost, {exit_words(link.exit_status)}; another is started")
        await self._start_another()

    async def _start_another(self) -> Link | None:
        """Start a worker, again and again until one is ready."""
        pause_s = _FIRST_PAUSE_S
        while not self._is_closing or self._queue:
            link = self._new_link()
            self._links.append(link)
            self._restarts += 1
            try:
                await link.start()
            except (MarsmithError, OSError) as error:
                self._is_failing = True
                self._tell(f"{error}; tried again in {pause_s:g} s")
                if link in self._links:
                    self._links.remove(link)
                self._give_up()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._is_failing = False
                self._limits[link] = self._memory_limit(link)
                self._schedule()
                return link
        return None

    def _give_up(self) -> None:
        """Answer what waits if no worker is left: nobody knows when one loads again."""
        if not self.is_ready:
            waiting, self._queue = list(self._queue), deque()
            for job in waiting:
                job.fail(503, self._no_worker(), UNAVAILABLE)
            self._check_emptied()

    async def _watch(self) -> None:
        """Look for late requests and for leaking workers."""
        while True:
            await asyncio.sleep(_WATCH_S)
            self._drop_late()
            grown = [each for each in self._links if each.ready and _memory(each) > self._limits[each]]
            # One after the other: each takes the memory of two meanwhile.
            if grown and not self._retiring:
                self._retiring.add(grown[0])
                self._run(self._retire(grown[0]))

    async def _retire(self, link: Link) -> None:
        """Replace a worker that has grown too large, without a failed request: first the new one, then its end."""
        self._tell(f"{self.version.id}: worker {link.pid} has {_memory(link) >> 20} MiB; another takes its place")
        self._limits[link] = _memory(link) * 2
        await self._start_another()
        link.ready = False
        while link.held and link in self._links:
            await asyncio.sleep(0.05)
        if link in self._links:
            self._links.remove(link)
        self._limits.pop(link, None)
        self._retiring.discard(link)
        await link.end()

    def _memory_limit(self, link: Link) -> int:
        wanted = self.version.worker_memory
        return wanted or max(_LEAK_FACTOR * _memory(link), _memory(link) + _LEAK_LEAST)

    def _new_link(self) -> Link:
        used = [link.gpu for link in self._links]
        # The one with the fewest workers.
        gpu = min(self.version.gpus, key=used.count, default=None)
        return Link(self.version, self, self._log_folder, gpu)

    def _no_worker(self) -> str:
        name, version = self.version.id
        return f'Model "{name}" Version {version} has no worker to serve inference request.'

    def _run(self, task: object) -> None:
        started: asyncio.Task[None] = self._loop.create_task(task)  # type: ignore[arg-type]
        self._tasks.add(started)
        started.add_done_callback(self._tasks.discard)


def _refuse(job: Job, version: HostedVersion, refusal: admission.Refusal) -> None:
    kind = TOO_MANY if refusal.status == 429 else UNAVAILABLE
    job.fail(refusal.status, f"{version.id}: {refusal.message}", kind, {"retry-after": str(refusal.retry_after_s)})


def _reply(head: dict[str, object], body: bytes) -> Reply:
    headers = head.get("headers")
    named = {str(name).lower(): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
    status = head.get("status")
    return Reply(status if isinstance(status, int) else 200, named, body)


def _memory(link: Link) -> int:
    try:
        return int(psutil.Process(link.pid).memory_info().rss)
    except psutil.Error:
        return 0
