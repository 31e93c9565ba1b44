"""Every call that a client makes of a server, once for the client that blocks and for the one that does not."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from marsmith import management
from marsmith.endpoint import Endpoint, in_time, insist, with_token
from marsmith.errors import ClientError, NotFoundError, UsageError
from marsmith.failures import failure, restore_status, was_not_taken
from marsmith.management import RegisteredModel, Registration, VersionStatus
from marsmith.names import check_model_name, check_model_version
from marsmith.pace import Pace, silence_s
from marsmith.rest import Reply, Request
from marsmith.retries import NO_RETRIES, Deadline, Failure, RetryPolicy

# Whether there is a worker is asked after a call has failed already: not for long.
REASON_DEADLINE_S = 5.0
T = TypeVar("T")


class GrpcCarrier(Protocol):
    """What carries predictions over gRPC."""

    async def predict(
        self, model: str, version: str | None, body: bytes, token: str | None, deadline_s: float
    ) -> Reply:
        """Send one request and return the reply, as REST would have given it."""

    def stream(
        self, model: str, version: str | None, body: bytes, token: str | None, deadline_s: float
    ) -> AsyncGenerator[Reply, None]:
        """Send one request and yield a reply for each part of the answer."""


@dataclass(frozen=True)
class Prediction:
    """One prediction to ask for.

    Attributes:
        model: model name.
        body: the content of the request.
        version: model version; None: the default version.
        headers: of the request, its content type among them.
        deadline_s: how long it may take, in seconds; None: as long as the client says.
        idempotent: whether it may be worked on twice, where a worker or a connection is lost.
    """

    model: str
    body: bytes
    version: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float | None = None
    idempotent: bool = True

    def checked(self) -> Prediction:
        """Return it, once it is sure that its names are names; raises UsageError."""
        check_model_name(self.model)
        if self.version is not None:
            check_model_version(self.version)
        return self

    @property
    def subject(self) -> str:
        """What it is asked of, in words."""
        return f"model {self.model}" + (f":{self.version}" if self.version else "")

    def request(self, url: str) -> Request:
        """Return the request over REST."""
        version = () if self.version is None else (self.version,)
        return Request("POST", url, ("predictions", self.model, *version), body=self.body, headers=dict(self.headers))


def sent_headers(content_type: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of a prediction."""
    return {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}


@dataclass(frozen=True)
class Calls:
    """The calls of one server.

    Attributes:
        inference, management: its APIs over REST; None: the address of the management API is not known.
        grpc: its inference API over gRPC; None: the address is not known.
        policy: when a call is sent again.
        pace: how fast the versions answered lately.
    """

    inference: Endpoint
    management: Endpoint | None
    grpc: GrpcCarrier | None
    policy: RetryPolicy
    pace: Pace = field(default_factory=Pace)

    async def ping(self) -> str:
        """Return the health that the server claims."""
        reply = await self.inference.call("GET", "ping")
        if reply.status == 500 and b'"Unhealthy"' in reply.body:
            return "Unhealthy"
        error = failure(reply, "ping")
        if error:
            raise error
        return str(reply.json()["status"])

    # Predictions ----------------------------------------------------------------------------------------------------

    async def predict(self, prediction: Prediction) -> Reply:
        """Ask for a prediction over REST."""
        request = prediction.checked().request(self.inference.url)
        return await self._insisted(prediction, lambda seconds: self.inference.once(request, seconds))

    async def predict_grpc(self, prediction: Prediction) -> Reply:
        """Ask for a prediction over gRPC."""
        asked, carrier = prediction.checked(), self._grpc()

        async def ask(seconds: float) -> Reply:
            late = Deadline(seconds)

            async def send(token: str | None) -> Reply:
                left_s = in_time(late, "the inference API over gRPC")
                return await carrier.predict(asked.model, asked.version, asked.body, token, left_s)

            return restore_status(await with_token(self.inference.tokens, "inference", send))

        return await self._insisted(asked, ask)

    async def stream(self, prediction: Prediction) -> AsyncGenerator[bytes, None]:
        """Ask for a prediction over REST and yield the parts of the answer."""
        request, carrier = prediction.checked().request(self.inference.url), self.inference.carrier

        def begin(token: str | None, seconds: float) -> AsyncGenerator[Reply, None]:
            return carrier.stream(request, token, seconds)

        async with aclosing(self._streamed(prediction, begin)) as parts:
            async for part in parts:
                yield part

    async def stream_grpc(self, prediction: Prediction) -> AsyncGenerator[bytes, None]:
        """Ask for a prediction over gRPC and yield the parts of the answer."""
        asked, carrier = prediction.checked(), self._grpc()

        def begin(token: str | None, seconds: float) -> AsyncGenerator[Reply, None]:
            return _restored(carrier.stream(asked.model, asked.version, asked.body, token, seconds))

        async with aclosing(self._streamed(asked, begin)) as parts:
            async for part in parts:
                yield part

    async def _insisted(self, asked: Prediction, ask: Callable[[float], Awaitable[Reply]]) -> Reply:
        deadline = self._deadline(asked)
        attempts = 0

        async def attempt() -> Reply:
            nonlocal attempts
            attempts += 1
            began = Deadline(in_time(deadline, self.inference.url))
            reply = await ask(min(deadline.left_s, self._patience_s(asked, attempts)))
            await self._check(reply, asked, deadline)
            self.pace.note(asked.model, asked.version, began.elapsed_s)
            return reply

        return await self._insist(attempt, asked, deadline)

    async def _streamed(
        self, asked: Prediction, begin: Callable[[str | None, float], AsyncGenerator[Reply, None]]
    ) -> AsyncGenerator[bytes, None]:
        """Begin a stream until it gives a first part, then pass its parts on; after the first, a failure is final."""
        deadline = self._deadline(asked)
        parts: AsyncGenerator[Reply, None] = _nothing()

        async def begun(token: str | None) -> Reply:
            nonlocal parts
            await parts.aclose()
            parts = begin(token, in_time(deadline, self.inference.url))
            return await anext(parts, Reply(200, "", {}, b""))

        async def attempt() -> Reply:
            first = await with_token(self.inference.tokens, "inference", begun)
            await self._check(first, asked, deadline)
            return first

        try:
            yield (await self._insist(attempt, asked, deadline)).body
            async for part in parts:
                await self._check(part, asked, deadline)
                yield part.body
        finally:
            await parts.aclose()

    async def _insist(self, attempt: Callable[[], Awaitable[Reply]], asked: Prediction, deadline: Deadline) -> Reply:
        return await insist(
            attempt,
            policy=self.policy,
            deadline=deadline,
            pause=self.inference.carrier.pause,
            idempotent=asked.idempotent,
        )

    def _deadline(self, asked: Prediction) -> Deadline:
        return Deadline(self.inference.deadline_s if asked.deadline_s is None else asked.deadline_s)

    def _patience_s(self, asked: Prediction, attempts: int) -> float:
        """Return how long to wait for a reply at most: the deadline alone, unless its absence can be made up for."""
        silence = silence_s(self.pace.seconds(asked.model, asked.version))
        policy = self.policy
        last = attempts > policy.resends or attempts == policy.attempts
        may_repeat = asked.idempotent and Failure.SILENT in policy.retried and not last
        return silence if silence is not None and may_repeat else math.inf

    async def _check(self, reply: Reply, asked: Prediction, deadline: Deadline) -> None:
        """Return where ``reply`` is an answer; else find out what it means, and raise that."""
        if reply.status < 400:
            return
        api = self._briefly(deadline)
        if was_not_taken(reply):
            seconds = self.pace.seconds(asked.model, asked.version)
            raise await management.why_not_taken(api, asked.model, asked.version, seconds)
        error: ClientError | None = failure(reply, asked.subject)
        if isinstance(error, NotFoundError):
            error = await management.with_known_names(api, error, asked.model)
        if error:
            raise error

    def _briefly(self, deadline: Deadline) -> Endpoint | None:
        if self.management is None:
            return None
        seconds = min(REASON_DEADLINE_S, max(0.1, deadline.left_s))
        return replace(self.management, deadline_s=seconds, policy=NO_RETRIES)

    # Management -----------------------------------------------------------------------------------------------------

    async def models(self) -> list[RegisteredModel]:
        """Return the registered models."""
        return await management.list_models(self.managed)

    async def describe(self, model: str, version: str | None = None) -> list[VersionStatus]:
        """Return how the versions of a model run."""
        return await self._named(model, management.describe(self.managed, model, version))

    async def handler_facts(self, model: str, version: str, deadline_s: float | None = None) -> Mapping[str, Any]:
        """Let a version's handler describe itself."""
        seconds = self.managed.deadline_s if deadline_s is None else deadline_s
        return await self._named(model, management.handler_facts(self.managed, model, version, seconds))

    async def register(self, registration: Registration, deadline_s: float | None = None) -> str:
        """Register an archive."""
        return await management.register(self.managed, registration, deadline_s or management.LOADING_DEADLINE_S)

    async def unregister(self, model: str, version: str | None = None) -> str:
        """Unregister a version."""
        return await self._named(model, management.unregister(self.managed, model, version))

    async def scale(
        self, model: str, version: str | None, workers: tuple[int, int | None], synchronous: bool = True
    ) -> str:
        """Set the least and the most workers of a version."""
        scaled = management.scale(self.managed, model, version, workers=workers, synchronous=synchronous)
        return await self._named(model, scaled)

    async def set_default(self, model: str, version: str) -> str:
        """Choose the version that answers when none is named."""
        return await self._named(model, management.set_default(self.managed, model, version))

    async def _named(self, model: str, call: Awaitable[T]) -> T:
        """Wait for ``call``; where it does not find the model, name those that are registered."""
        try:
            return await call
        except NotFoundError as error:
            raise await management.with_known_names(self.managed, error, model) from None

    @property
    def managed(self) -> Endpoint:
        """The management API; raises UsageError where its address is not known."""
        if self.management is None:
            raise UsageError("the client was not told the address of the management API")
        return self.management

    def _grpc(self) -> GrpcCarrier:
        if self.grpc is None:
            raise UsageError("the client was not told the address of the inference API over gRPC")
        return self.grpc


async def _restored(parts: AsyncGenerator[Reply, None]) -> AsyncGenerator[Reply, None]:
    """Give each part that came over gRPC the status that its body states."""
    async with aclosing(parts):
        async for part in parts:
            yield restore_status(part)


async def _nothing() -> AsyncGenerator[Reply, None]:
    nothing: tuple[Reply, ...] = ()
    for reply in nothing:
        yield reply
