"""Workers of a batch on the nodes of a Ray cluster: an actor for each, which runs a worker process of its own.

Ray hands out shards, and nothing else: how inputs are read, what a dead worker means and how parts are written is the
same as on one machine. If a node is lost, its shards are handed out again. The archive goes to the nodes through Ray's
object store; the inputs and the destination must be reachable from every node.
"""

from __future__ import annotations

import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from marsmith.archive.unpacked import unpacked
from marsmith.child_processes import temporary_folder
from marsmith.errors import BatchError, MarsmithError, MissingDependencyError
from marsmith.scoring.destination import open_destination
from marsmith.scoring.halving import ShardWork
from marsmith.scoring.messages import WorkerSetup
from marsmith.scoring.parts import PartRecord, part_name
from marsmith.scoring.planning import stored_keys
from marsmith.scoring.workers import Limits, Progress, Workers

# Losses of the workers of one shard, or of workers that have none yet.
_MOST_LOSSES = 5
_LOOK_S = 1.0
_CONNECT_S = 10.0


class NodeWorker:
    """A worker process on a node; Ray makes an actor of this class."""

    def __init__(self, setup: WorkerSetup, archive: bytes | str, limits: Limits) -> None:
        """Unpack the archive, and find the keys.

        Args:
            setup: of a worker on the machine of the batch.
            archive: content of the file, or the path of a folder that every node has.
            limits: of the worker.
        """
        self._stack = ExitStack()
        work = self._stack.enter_context(temporary_folder("marsmith-ray-"))
        path = Path(archive) if isinstance(archive, str) else work / "archive.mar"
        if isinstance(archive, bytes):
            path.write_bytes(archive)
        members = self._stack.enter_context(unpacked(path))
        keys = stored_keys(open_destination(setup.to), setup.plan, work)
        here = replace(setup, folder=str(members.folder), keys=str(keys))
        self._workers = self._stack.enter_context(Workers(here, 1, limits))

    def ready(self) -> None:
        """Return when the constructor is done."""

    def score(self, shard: int) -> tuple[PartRecord | None, list[str], tuple[str, str | None] | None]:
        """Answer one shard; return its part, words about workers that died, and the message and tip of an error."""
        plan = self._workers.setup.plan
        work = ShardWork.of(shard, plan.rows(shard), plan.settings.batch_size)
        part, died = None, []
        try:
            for progress in self._workers.run([work]):
                part = progress.part or part
                died += [progress.died] if progress.died else []
        except MarsmithError as error:
            return None, died, (error.message, error.tip)
        return part, died, None


class RayWorkers:
    """The workers on a cluster; a context manager, which ends them and leaves the cluster."""

    def __init__(self, address: str, setup: WorkerSetup, archive: Path, count: int | None, limits: Limits) -> None:
        """Connect to a cluster.

        Args:
            address: of the cluster; empty: that of RAY_ADDRESS, or the one on this machine.
            setup: what each worker gets.
            archive: file, or a folder that every node has.
            count: of workers; None: one for each processor of the cluster.
            limits: of each worker.

        Raises:
            BatchError: there is no such cluster.
            MissingDependencyError: ray is not installed.
        """
        self._ray = _connected(address)
        self._limits = limits
        content = self._ray.put(str(archive.absolute()) if archive.is_dir() else archive.read_bytes())
        self._arguments = (setup, content, limits)
        self.count = count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._actors: list[Any] = []
        self._seen = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor)
        self._ray.shutdown()

    def run(self, shards: Iterable[ShardWork]) -> Iterator[Progress]:
        """Hand out shards until all are done; yield what happens.

        Raises:
            BatchError: a worker does not start or cannot write, or the nodes of a shard are lost again and again.
        """
        rest, idle, losses = deque(work.index for work in shards), deque[Any](), Counter[int]()
        count = len(rest)
        waiting = self._started(min(self.count, count))
        while count:
            while idle and rest:
                free, following = idle.popleft(), rest.popleft()
                waiting[free.score.remote(following)] = (free, following)
            done, _ = self._ray.wait(list(waiting), timeout=_LOOK_S)
            self._check_cluster(is_working=bool(done) or any(shard is not None for _, shard in waiting.values()))
            for future in done:
                actor, shard = waiting.pop(future)
                try:
                    found = self._ray.get(future)
                except self._ray.exceptions.RayActorError as error:
                    yield self._lost(shard, error, losses, rest)
                    waiting |= self._started(1)
                    continue
                idle.append(actor)
                if shard is not None:
                    count -= 1
                    yield from _progress(found)

    def _started(self, count: int) -> dict[Any, tuple[Any, int | None]]:
        """Start actors; return what tells that each is ready."""
        kind = self._ray.remote(num_cpus=1, max_restarts=0)(NodeWorker)
        made = [kind.remote(*self._arguments) for _ in range(count)]
        self._actors += made
        return {actor.ready.remote(): (actor, None) for actor in made}

    def _lost(self, shard: int | None, error: Exception, losses: Counter[int], rest: deque[int]) -> Progress:
        reason = str(error).strip().splitlines()[0]
        number = -1 if shard is None else shard
        losses[number] += 1
        what = "a worker of the cluster" if shard is None else f"the worker of {part_name(shard)}"
        if losses[number] >= _MOST_LOSSES:
            raise BatchError(f"{what} was lost {losses[number]} times: {error}", tip="ray status")
        if shard is not None:
            rest.appendleft(shard)
        return Progress(died=f"{what} is lost: {reason}")

    def _check_cluster(self, *, is_working: bool) -> None:
        """Raise if no worker works, and none starts in time."""
        now = time.monotonic()
        if is_working:
            self._seen = now
        elif now - self._seen > self._limits.startup_s:
            raise BatchError(
                f"the cluster started no worker within {self._limits.startup_s:g} s",
                tip="ray status shows what is free",
            )


def _progress(found: tuple[PartRecord | None, list[str], tuple[str, str | None] | None]) -> Iterator[Progress]:
    part, died, failure = found
    for words in died:
        yield Progress(died=words)
    if failure:
        raise BatchError(failure[0], tip=failure[1])
    if part:
        yield Progress(rows=sum(part.statuses.values()), part=part)


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise MissingDependencyError("ray", extra="ray") from None
    try:
        _check_reachable(address)
        ray.init(address=address or "auto", log_to_driver=False, logging_level="error", configure_logging=False)
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        where = address or "on this machine"
        words = str(error).strip().splitlines()[0]
        raise BatchError(f"no Ray cluster {where}: {words}", tip="ray start --head, or --on ray:HOST:6379") from None
    return ray
