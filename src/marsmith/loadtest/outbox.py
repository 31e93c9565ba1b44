"""What the connections of one load test send: put together once, and again when the token is a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from marsmith.client.deadline import Deadline
from marsmith.client.endpoint import Tokens, with_token
from marsmith.client.http import missed
from marsmith.client.tokens import Role
from marsmith.errors import ClientError
from marsmith.loadtest.lane import TOKEN_REFUSED, Answer

Content = TypeVar("Content")


class Outbox(Generic[Content]):
    """What all connections send, with the token that is good now.

    Attributes:
        content: what they send; another object after a renewal.
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
    ) -> Outbox[Content]:
        """Get a token, where the server asks for one, and put together what is sent.

        Args:
            write: puts it together, with a token.
            tokens: where it comes from; None: the server asks for none, or it is never renewed.
            deadline_s: how long that may take, in seconds.

        Raises:
            ClientError: there is no token.
        """
        return cls(write, tokens, await tokens.get("inference", Deadline(deadline_s)) if tokens else None)

    async def again(self, refused: Answer, send: Callable[[float], Awaitable[Answer]], deadline_s: float) -> Answer:
        """Send a request again whose token was refused, with a newer one; ``refused`` where there is none."""
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
        """Return the token that is sent now."""
        return self._token or ""

    async def after_refusal(self, role: Role, refused: str, deadline: Deadline) -> str | None:
        """Return another token than the one that was refused, and send that from now on; None where there is none.

        The first connection that is refused renews it for all; the others wait for that.
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
