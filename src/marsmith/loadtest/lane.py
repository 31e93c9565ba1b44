"""What carries requests to a server, one at a time each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from marsmith.client.failures import is_answer, is_authorization_failure
from marsmith.client.http import HttpReply

OK = "ok"
TOKEN_REFUSED = "token refused"  # noqa: S105, in words what went wrong


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    Attributes:
        verdict: ``ok``, or in a few words what went wrong: ``503``, ``timeout``, ``connection lost``.
        body: of the reply; empty where there was none.
    """

    verdict: str
    body: bytes = b""

    @property
    def is_ok(self) -> bool:
        """Whether the request was answered as it should be."""
        return self.verdict == OK


def answer_of(reply: HttpReply) -> Answer:
    """Judge a reply as the client does."""
    if is_answer(reply):
        return Answer(OK, reply.body)
    return Answer(TOKEN_REFUSED if is_authorization_failure(reply) else str(reply.status), reply.body)


class Connection(Protocol):
    """One connection; it carries a request at a time."""

    async def call(self, body: int) -> Answer:
        """Send the input of that index and return the answer; errors are answers too."""

    async def close(self) -> None:
        """Close the connection."""


OpenLane = Callable[[], Awaitable[Connection]]
