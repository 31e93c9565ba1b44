"""Run the client's coroutines without an event loop, with blocking input and output.

The client's logic is written once, in coroutines. They wait only for their carriers. If the carriers block, a coroutine
is never suspended, and one step runs it to its end.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import closing
from typing import Any, TypeVar

from marsmith.client.calls import Prediction
from marsmith.client.deadline import Deadline
from marsmith.client.grpc import InferenceChannel
from marsmith.client.http import HttpReply, HttpRequest, Transport
from marsmith.client.key_file import Role
from marsmith.client.tokens import TokenSource

T = TypeVar("T")


def finished(steps: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine with blocking carriers, and return its result."""
    try:
        steps.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    steps.close()
    raise RuntimeError("a blocking call was suspended")


def each(parts: AsyncGenerator[T, None]) -> Iterator[T]:
    """Iterate over an asynchronous generator with blocking carriers."""

    async def following() -> T:
        return await parts.__anext__()

    try:
        while True:
            try:
                part = finished(following())
            except StopAsyncIteration:
                return
            yield part
    finally:
        # A caller that stops early also ends the request.
        finished(_closed(parts))


async def _closed(parts: AsyncGenerator[Any, None]) -> None:
    await parts.aclose()


class BlockingCarrier:
    """Carries requests over a blocking transport."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def send(self, request: HttpRequest, token: str | None, deadline_s: float) -> HttpReply:
        """Send a request and return the reply."""
        return self.transport.send(request, token=token, deadline_s=deadline_s)

    async def stream(
        self, request: HttpRequest, token: str | None, deadline_s: float
    ) -> AsyncGenerator[HttpReply, None]:
        """Send a request and yield the parts of the reply."""
        with closing(self.transport.stream(request, token=token, deadline_s=deadline_s)) as parts:
            for part in parts:
                yield part

    async def pause(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class BlockingTokens:
    """Gives the tokens of a source to blocking calls."""

    def __init__(self, source: TokenSource) -> None:
        self.source = source

    async def get(self, role: Role, deadline: Deadline) -> str:
        """Return a valid token."""
        return self.source.get(role, deadline)

    async def after_refusal(self, role: Role, refused: str, deadline: Deadline) -> str | None:
        """Return another token than the refused one."""
        return self.source.after_refusal(role, refused, deadline)


class BlockingInference:
    """Carries predictions over a gRPC channel that the first of them opens."""

    def __init__(self, channel: Callable[[], InferenceChannel]) -> None:
        self._channel = channel

    async def predict(self, asked: Prediction, token: str | None, deadline_s: float) -> HttpReply:
        """Send one request and return the reply."""
        return self._channel().predict(
            asked.model, asked.version, asked.body, token, deadline_s, idempotent=asked.idempotent
        )

    async def stream(self, asked: Prediction, token: str | None, deadline_s: float) -> AsyncGenerator[HttpReply, None]:
        """Send one request and yield a reply for each part of the answer."""
        channel, what = self._channel(), (asked.model, asked.version, asked.body)
        with closing(channel.stream(*what, token, deadline_s, idempotent=asked.idempotent)) as parts:
            for part in parts:
                yield part
