"""Requests shared by all connections of a load test: built once, and again after a token is renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from marsmith.client.deadline import Deadline
from marsmith.client.endpoint import Tokens, with_token
from marsmith.client.http import missed
from marsmith.client.key_file import Role
from marsmith.errors import ClientError
from marsmith.loadtest.connection import TOKEN_REFUSED, Answer

Content = TypeVar("Content")


class SharedRequests(Generic[Content]):
    """The requests that all connections send, with the current token.

    Attributes:
        content: the requests; a new object after a renewal.
    """

    def __init__(self, write: Callable[[str | None], Content], tokens: Tokens | None, token: str | None) -> None:
        self._write = write
        self._tokens = tokens
        self._token = token
        self._renewing = asyncio.Lock()
        self.content = write(token)

    @classmethod
    async def open(
        cls, write: Callable[[str | None], Content], tokens: Tokens | None, deadline_s: float
    ) -> SharedRequests[Content]:
        """Get a token, if the server requires one, and build the requests.

        Args:
            write: builds the requests for a token.
            tokens: source of tokens. None: the server requires none, or the token is never renewed.
            deadline_s: time limit for the token, in seconds.

        Raises:
            ClientError: no token could be obtained.
        """
        return cls(write, tokens, await tokens.get("inference", Deadline(deadline_s)) if tokens else None)

    async def again(self, refused: Answer, send: Callable[[float], Awaitable[Answer]], deadline_s: float) -> Answer:
        """Retry a request with a newer token after its token was refused.

        Return ``refused`` if there is no newer token.
        """
        if self._tokens is None:
            return refused
        deadline = Deadline(deadline_s)
        try:
            return await with_token(
                self,
                "inference",
                lambda _: send(deadline.left_s),
                deadline,
                is_refused=lambda answer: answer.verdict == TOKEN_REFUSED,
            )
        except ClientError:
            return refused

    async def get(self, role: Role, deadline: Deadline) -> str:  # noqa: ARG002, as ``Tokens`` has it
        """Return the current token."""
        return self._token or ""

    async def after_refusal(self, role: Role, refused: str, deadline: Deadline) -> str | None:
        """Return a newer token than the refused one, and use it from now on. None if there is none.

        The first connection that is refused renews the token for all; the others wait for it.
        """
        try:
            async with asyncio.timeout(deadline.left_s), self._renewing:
                if self._tokens and self._token == refused:
                    fresh = await self._tokens.after_refusal(role, refused, deadline)
                    if fresh is None:
                        return None
                    self._token, self.content = fresh, self._write(fresh)
        except TimeoutError:
            raise missed("the management API", deadline.seconds) from None
        return self._token
