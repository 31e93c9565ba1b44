"""What goes through the front: a request for a handler, its reply, and the job that holds both."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from marsmith.runtime.frontend import error_reply

INTERNAL = "InternalServerException"
UNAVAILABLE = "ServiceUnavailableException"


@dataclass(frozen=True)
class HandlerRequest:
    """One request as a handler gets it.

    Attributes:
        id: unique id.
        headers: headers by name, with those that TorchServe's frontend adds.
        content_type: content type; None if there is none.
        blocks: the body alone, or the values of the parts.
        parts: names of the blocks; None: one body, which the worker parses by its content type.
        query: query of the URL.
    """

    id: str
    headers: Mapping[str, str]
    content_type: str | None
    blocks: tuple[bytes, ...]
    parts: tuple[str, ...] | None = None
    query: str = ""


@dataclass(frozen=True)
class Reply:
    """A reply.

    Attributes:
        status: HTTP status.
        headers: headers by lower-case name.
        body: content.
        problem: name and message of an error of the host itself; None for a reply of a handler.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    problem: tuple[str, str] | None = None


@dataclass
class Job:
    """A request on its way through the queue and a worker.

    Attributes:
        request: what the handler gets.
        reply: its reply; of a streaming handler, the first part.
        arrived: time of its arrival, in seconds on the monotonic clock.
        deadline: time after which nobody waits for the reply; infinite without one.
        idempotent: whether it may be processed twice if a worker is lost.
        lost: number of workers that were lost with it in work.
        sent: time at which a worker got it.
        stream: further parts, and None after the last; None for a handler that does not stream.
    """

    request: HandlerRequest
    reply: asyncio.Future[Reply]
    arrived: float
    deadline: float = math.inf
    idempotent: bool = True
    lost: int = 0
    sent: float = 0.0
    stream: asyncio.Queue[bytes | None] | None = field(default=None, repr=False)

    def answer(self, reply: Reply) -> None:
        """Set the reply, or the last part of it."""
        if self.stream is not None:
            self.stream.put_nowait(reply.body)
            self.stream.put_nowait(None)
        elif not self.reply.done():
            self.reply.set_result(reply)

    def part(self, reply: Reply) -> None:
        """Set a part of the reply; more follow."""
        if self.stream is not None:
            self.stream.put_nowait(reply.body)
        elif not self.reply.done():
            self.stream = asyncio.Queue()
            self.reply.set_result(reply)

    def fail(self, code: int, message: str, kind: str = INTERNAL, headers: Mapping[str, str] | None = None) -> None:
        """Answer with an error of the server itself; a stream that has begun ends."""
        if self.stream is not None:
            self.stream.put_nowait(None)
        else:
            self.answer(error(code, message, kind, self.request.id, headers))


def error(code: int, message: str, kind: str, request_id: str = "", headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error in the form of TorchServe's frontend."""
    made = error_reply(code, message, request_id, kind)
    return Reply(made.status, {"content-type": made.content_type, **(headers or {})}, made.body, (kind, message))
