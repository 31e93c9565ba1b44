"""Connections of a load test, and the answers that they return."""

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
    """The outcome of one request.

    Attributes:
        verdict: ``ok``, or a short description of the failure: ``503``, ``timeout``, ``connection lost``.
        body: body of the reply; empty if there was no reply.
    """

    verdict: str
    body: bytes = b""

    @property
    def is_ok(self) -> bool:
        """Whether the request succeeded."""
        return self.verdict == OK


def answer_of(reply: HttpReply) -> Answer:
    """Turn a reply into an answer, as the client does."""
    if is_answer(reply):
        return Answer(OK, reply.body)
    return Answer(TOKEN_REFUSED if is_authorization_failure(reply) else str(reply.status), reply.body)


class Connection(Protocol):
    """One connection; it carries one request at a time."""

    async def call(self, body: int) -> Answer:
        """Send the input of that index and return the answer. Failures are returned as answers too."""

    async def close(self) -> None:
        """Close the connection."""


OpenConnection = Callable[[], Awaitable[Connection]]
