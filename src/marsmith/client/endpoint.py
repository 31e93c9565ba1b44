"""Calls of one of TorchServe's APIs, with the token of its role, and with retries if they are safe.

The coroutines are written once, for the blocking and the asynchronous client. Only the carriers differ.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar

from marsmith.client.deadline import Deadline
from marsmith.client.failures import is_authorization_failure
from marsmith.client.http import HttpReply, HttpRequest, missed
from marsmith.client.key_file import Role
from marsmith.client.retries import SURELY_NOT_EXECUTED, AttemptState, RetryPolicy, kind_of, next_pause_s
from marsmith.errors import ClientError, DeadlineError
from marsmith.run_state import RunState

T = TypeVar("T")


class Carrier(Protocol):
    """Interface to carry requests to a REST API, and to wait."""

    async def send(self, request: HttpRequest, token: str | None, deadline_s: float) -> HttpReply:
        """Send a request and return the reply with any status."""

    def stream(self, request: HttpRequest, token: str | None, deadline_s: float) -> AsyncGenerator[HttpReply, None]:
        """Send a request and yield the parts of the reply."""

    async def pause(self, seconds: float) -> None:
        """Wait."""


class Tokens(Protocol):
    """Source of tokens. Each call raises DeadlineError after ``deadline``."""

    async def get(self, role: Role, deadline: Deadline) -> str:
        """Return a valid token."""

    async def after_refusal(self, role: Role, refused: str, deadline: Deadline) -> str | None:
        """Return another token than the refused one; None if there is none."""


async def with_token(
    tokens: Tokens | None,
    role: Role,
    send: Callable[[str | None], Awaitable[T]],
    deadline: Deadline,
    *,
    is_refused: Callable[[T], bool],
) -> T:
    """Call ``send`` with a token, and again with a newer one if the token was refused.

    A refused request has not been processed, so it can be sent again. A second retry is for a token that was renewed
    twice in between.
    """
    token = await tokens.get(role, deadline) if tokens else None
    reply = await send(token)
    for _ in range(2):
        if not (tokens and token and is_refused(reply)):
            break
        token = await tokens.after_refusal(role, token, deadline)
        if token is None:
            break
        reply = await send(token)
    return reply


async def insist(
    attempt: Callable[[], Awaitable[T]],
    *,
    policy: RetryPolicy,
    deadline: Deadline,
    pause: Callable[[float], Awaitable[None]],
    idempotent: bool,
) -> T:
    """Call ``attempt`` until it succeeds or until ``policy`` treats its failure as final; raises the last error."""
    sent = uncertain = 0
    while True:
        try:
            return await attempt()
        except ClientError as error:
            sent += 1
            uncertain += kind_of(error) not in SURELY_NOT_EXECUTED
            tries = AttemptState(sent, uncertain, deadline.elapsed_s, deadline.left_s)
            seconds = next_pause_s(policy, error, tries, idempotent=idempotent, chance=random.random())  # noqa: S311
            if seconds is None:
                if isinstance(error, DeadlineError) and error.address:
                    # The last attempt had only the remaining time; the error names the whole time limit.
                    raise missed(error.address, deadline.seconds, error.doing) from None
                raise
            failure = error
        await pause(seconds)
        if not deadline.left_s:
            raise failure


class Server(TypedDict):
    """The addresses and credentials of a project's server: the arguments of both clients."""

    inference: str
    management: str
    key_file: Path | None
    grpc: str | None
    ca_file: Path | None


def server_of(state: RunState) -> Server:
    """Return the addresses and credentials of a running server."""
    return {
        "inference": state.inference,
        "management": state.management,
        "key_file": state.key_file if state.tokens else None,
        "grpc": state.grpc_inference,
        "ca_file": state.ca_file,
    }


@dataclass(frozen=True)
class Endpoint:
    """One REST API.

    Attributes:
        url: its base URL.
        role: role of the required token.
        carrier: carrier of the requests.
        tokens: source of tokens; None if the server requires none.
        deadline_s: time limit of a call, in seconds.
        policy: policy for retries.
        until: deadline of a call that consists of all these requests. None: each request is a call of its own.
    """

    url: str
    role: Role
    carrier: Carrier
    tokens: Tokens | None
    deadline_s: float
    policy: RetryPolicy
    until: Deadline | None = None

    def during(self, seconds: float | None = None) -> Endpoint:
        """Return the same API for one call, whose requests all end within ``seconds``; None: ``deadline_s``."""
        return replace(self, until=Deadline(self.deadline_s if seconds is None else seconds))

    @property
    def deadline(self) -> Deadline:
        """The deadline of a request that begins now."""
        return self.until or Deadline(self.deadline_s)

    async def call(
        self,
        method: str,
        *segments: str,
        parameters: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> HttpReply:
        """Send a request to ``segments``, a path below the base URL, and return the reply with any status.

        A request without a reply is sent again, within the deadline. If it may have been processed, it is sent again
        only if ``idempotent``, by default for the method GET.

        Raises:
            ConnectionFailedError: the server does not accept connections, or the connection broke.
            DeadlineError: the reply did not arrive in time.
            AuthorizationError: no token could be obtained.
        """
        request = HttpRequest(method, self.url, segments, parameters or {}, body, headers or {})
        harmless = method == "GET" if idempotent is None else idempotent
        return await self.insist(lambda deadline: self.once(request, deadline), idempotent=harmless)

    async def insist(self, attempt: Callable[[Deadline], Awaitable[T]], *, idempotent: bool) -> T:
        """Call ``attempt`` with its deadline, with retries if they are safe; see ``insist``."""
        deadline = self.deadline
        return await insist(
            lambda: attempt(deadline),
            policy=self.policy,
            deadline=deadline,
            pause=self.carrier.pause,
            idempotent=idempotent,
        )

    async def once(self, request: HttpRequest, deadline: Deadline) -> HttpReply:
        """Send a request without retries, except for a refused token, and return the reply with any status."""

        async def send(token: str | None) -> HttpReply:
            return await self.carrier.send(request, token, in_time(deadline, self.url))

        return await with_token(self.tokens, self.role, send, deadline, is_refused=is_authorization_failure)


def in_time(deadline: Deadline, where: str) -> float:
    """Return the remaining seconds; raises DeadlineError if there are none."""
    left = deadline.left_s
    if left <= 0:
        raise missed(where, deadline.seconds)
    return left
