"""One worker process as the front sees it: started, loaded, fed with batches, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from marsmith import child_processes
from marsmith.errors import HandlerError, MarsmithError
from marsmith.host import frames
from marsmith.host.messages import HandlerRequest, Job
from marsmith.host.version import HostedVersion

# Long enough for a handler to close files; it answers nothing any more.
_END_GRACE_S = 2.0
_TAIL = 4000


class Owner(Protocol):
    """Who is told what a worker does."""

    def answered(self, link: Link, frame: frames.Frame) -> None:
        """A frame of replies, or of parts of replies, has arrived."""

    def lost(self, link: Link) -> None:
        """The worker has ended; what it held was not answered."""


class Link(asyncio.Protocol):
    """A worker process and the socket to it.

    Attributes:
        held: batches that it holds; it works on the first.
        gpu: number of its GPU; None: the CPU.
        ready: whether it has loaded its archive and takes batches.
    """

    def __init__(
        self, version: HostedVersion, owner: Owner, log_folder: Path | None = None, gpu: int | None = None
    ) -> None:
        self.held: deque[list[Job]] = deque()
        self.ready = False
        self.gpu = gpu
        self._version = version
        self._owner = owner
        self._log_folder = log_folder
        self._buffer = frames.FrameBuffer()
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._folders = ExitStack()
        self._late: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def exit_status(self) -> int | None:
        """Exit status of the process, negative for a signal; None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the process and have it load the archive.

        Raises:
            HandlerError: the handler does not load, or not in time.
            OSError: there is no room for another process.
        """
        version = self._version
        try:
            await self._connect()
            self._send(frames.encode("load", _order(version, self.gpu)))
            await asyncio.wait_for(asyncio.shield(self._loaded), version.content.startup_timeout_s)
        except TimeoutError:
            await self.end()
            limit = version.content.startup_timeout_s
            raise HandlerError(
                f"{version.id}: the handler did not load within {limit} s",
                tip="load less in initialize, or raise startupTimeout in the model config",
            ) from None
        except BaseException:
            await self.end()
            raise
        self.ready = True

    def send(self, jobs: list[Job]) -> None:
        """Give the worker a batch."""
        now = time.monotonic()
        for job in jobs:
            job.sent = now
        self.held.append(jobs)
        head = {"requests": [_described(job.request) for job in jobs]}
        self._send(frames.encode("batch", head, [block for job in jobs for block in job.request.blocks]))
        if len(self.held) == 1:
            self._begin_work()

    def kill(self) -> None:
        """Kill the process; its owner is told when the socket closes."""
        if self._process is not None and self._process.returncode is None:
            child_processes.kill_group(self._process.pid)

    async def end(self) -> None:
        """End the process, and reap it; may be called by several."""
        if self._ending is None:
            self._ending = self._loop.create_task(self._end())
        await asyncio.shield(self._ending)

    # asyncio calls these ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Pass on each frame that is complete; a worker that sends anything else is killed."""
        try:
            for frame in self._buffer.feed(data):
                self._take(frame)
        except (ValueError, KeyError, TypeError):
            self.kill()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Tell the owner that the worker has gone."""
        self.ready = False
        self._stop_clock()
        if not self._loaded.done():
            self._loaded.set_exception(HandlerError(f"{self._version.id}: its worker ended while it loaded"))
        # Also so that nobody hears of a failure for which nobody waits any more.
        elif self._loaded.exception() is None and self._ending is None:
            self._owner.lost(self)

    # -----------------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                self._process = await self._loop.run_in_executor(None, partial(self._launch, theirs.fileno()))
            except BaseException:
                ours.close()
                raise
            await self._loop.create_unix_connection(lambda: self, sock=ours)

    def _launch(self, descriptor: int) -> subprocess.Popen[Any]:
        env = self._folders.enter_context(child_processes.own_temporary_folder(os.environ))
        if self._log_folder is not None:
            env["LOG_LOCATION"] = str(self._log_folder)
        # Bytecode in the folder would be a file that no digest lists.
        env |= {"PYTHONDONTWRITEBYTECODE": "1", "TS_DECODE_INPUT_REQUEST": "true"}
        command = [sys.executable, "-P", "-m", "marsmith.host.worker", str(descriptor)]
        return child_processes.start(
            command,
            env,
            cwd=self._version.content.folder,
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[descriptor],
        )

    def _send(self, parts: Sequence[bytes | bytearray]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(parts)

    def _take(self, frame: frames.Frame) -> None:
        if frame.kind == "loaded":
            if not self._loaded.done():
                self._loaded.set_result(None)
        elif frame.kind == "failed":
            if not self._loaded.done():
                self._loaded.set_exception(_load_error(self._version, frame))
        else:
            self._stop_clock()
            self._owner.answered(self, frame)
            if self.held:
                self._begin_work()

    def _begin_work(self) -> None:
        self._late = self._loop.call_later(self._version.content.response_timeout_s, self.kill)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    async def _end(self) -> None:
        self.ready = False
        self._stop_clock()
        if self._transport is not None:
            # The worker ends by itself when its socket is closed.
            self._transport.close()
        if self._process is not None:
            end: Callable[[], int] = partial(child_processes.end, self._process, _END_GRACE_S)
            await self._loop.run_in_executor(None, end)
        self._folders.close()


def exit_words(status: int | None) -> str:
    """Return how a process ended, in words."""
    if status is None:
        return "it still runs"
    return f"it was ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"


def _order(version: HostedVersion, gpu: int | None) -> dict[str, Any]:
    content = version.content
    return {
        "folder": str(content.folder),
        "model": content.model_name,
        "handler": content.handler,
        "config": dict(version.config),
        "batch_size": version.batch_size,
        "gpu_id": gpu,
        "most_items": version.most_items,
    }


def _described(request: HandlerRequest) -> dict[str, Any]:
    return {
        "id": request.id,
        "headers": dict(request.headers),
        "type": request.content_type,
        "parts": request.parts,
        "query": request.query,
    }


def _load_error(version: HostedVersion, frame: frames.Frame) -> MarsmithError:
    said, traceback = str(frame.head["message"]), str(frame.head.get("traceback", ""))
    handler = version.content.handler
    return HandlerError(f"{version.id}: the handler {handler!r} does not load: {said[:_TAIL]}", tip=_hint(traceback))


def _hint(traceback: str) -> str | None:
    """Return the last place in a traceback."""
    lines = [line.strip() for line in traceback.splitlines() if line.strip().startswith("File ")]
    return f"raised in {lines[-1].removeprefix('File ')}" if lines else None
