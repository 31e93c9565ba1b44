"""All calls of a client, written once for the blocking and the asynchronous client."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from marsmith.client import management
from marsmith.client.deadline import Deadline
from marsmith.client.endpoint import Endpoint, in_time, insist, with_token
from marsmith.client.failures import failure, is_answer, is_authorization_failure, restore_status, was_not_taken
from marsmith.client.http import ONCE, HttpReply, HttpRequest, missed
from marsmith.client.management import RegisteredModel, Registration, VersionStatus
from marsmith.client.retries import NO_RETRIES, Failure, Pace, RetryPolicy, silence_s
from marsmith.errors import ClientError, DeadlineError, NotFoundError, UsageError
from marsmith.names import check_model_name, check_named_version

# Time limit of the query for workers after a call has failed, in seconds: the caller waits for the error.
REASON_DEADLINE_S = 5.0
T = TypeVar("T")


class GrpcCarrier(Protocol):
    """Interface to carry predictions over gRPC."""

    async def predict(self, asked: Prediction, token: str | None, deadline_s: float) -> HttpReply:
        """Send one request and return the reply that REST would have given."""

    def stream(self, asked: Prediction, token: str | None, deadline_s: float) -> AsyncGenerator[HttpReply, None]:
        """Send one request and yield a reply for each part of the answer."""


@dataclass(frozen=True)
class Prediction:
    """A prediction request.

    Attributes:
        model: model name.
        body: content of the request.
        version: model version; None: the default version.
        headers: headers of the request, including its content type.
        deadline_s: time limit, in seconds; None: the client's default.
        idempotent: whether it may be processed twice if a worker or a connection is lost.
    """

    model: str
    body: bytes
    version: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float | None = None
    idempotent: bool = True

    def checked(self) -> Prediction:
        """Return it after its names are validated; raises UsageError."""
        check_model_name(self.model)
        if self.version is not None:
            check_named_version(self.version)
        return self

    @property
    def subject(self) -> str:
        """Description of the model and version."""
        return f"model {self.model}" + (f":{self.version}" if self.version else "")

    def request(self, url: str) -> HttpRequest:
        """Return the request over REST."""
        version = () if self.version is None else (self.version,)
        headers = {**self.headers, **dict(() if self.idempotent else (ONCE,))}
        return HttpRequest("POST", url, ("predictions", self.model, *version), body=self.body, headers=headers)


def sent_headers(content_type: str | None, headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return the headers of a prediction."""
    return {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}


@dataclass(frozen=True)
class Calls:
    """All calls of one server.

    Attributes:
        inference, management: its APIs over REST; None if the address of the management API is unknown.
        grpc: its inference API over gRPC; None if the address is unknown.
        policy: policy for retries.
        pace: recent durations of answers by version.
    """

    inference: Endpoint
    management: Endpoint | None
    grpc: GrpcCarrier | None
    policy: RetryPolicy
    pace: Pace = field(default_factory=Pace)

    async def ping(self) -> str:
        """Return the health that the server reports."""
        reply = await self.inference.call("GET", "ping")
        if reply.status == 500 and b'"Unhealthy"' in reply.body:
            return "Unhealthy"
        error = failure(reply, "ping")
        if error:
            raise error
        return str(reply.json()["status"])

    # Predictions ----------------------------------------------------------------------------------------------------

    async def predict(self, prediction: Prediction) -> HttpReply:
        """Predict over REST."""
        request = prediction.checked().request(self.inference.url)
        return await self._insisted(prediction, lambda deadline: self.inference.once(request, deadline))

    async def predict_grpc(self, prediction: Prediction) -> HttpReply:
        """Predict over gRPC."""
        asked, carrier = prediction.checked(), self._grpc()

        async def ask(deadline: Deadline) -> HttpReply:
            async def send(token: str | None) -> HttpReply:
                left_s = in_time(deadline, "the inference API over gRPC")
                return await carrier.predict(asked, token, left_s)

            return restore_status(await self._authorized(send, deadline))

        return await self._insisted(asked, ask)

    async def stream(self, prediction: Prediction) -> AsyncGenerator[bytes, None]:
        """Predict over REST and yield the parts of the answer."""
        request, carrier = prediction.checked().request(self.inference.url), self.inference.carrier

        def begin(token: str | None, seconds: float) -> AsyncGenerator[HttpReply, None]:
            return carrier.stream(request, token, seconds)

        async with aclosing(self._streamed(prediction, begin)) as parts:
            async for part in parts:
                yield part

    async def stream_grpc(self, prediction: Prediction) -> AsyncGenerator[bytes, None]:
        """Predict over gRPC and yield the parts of the answer."""
        asked, carrier = prediction.checked(), self._grpc()

        def begin(token: str | None, seconds: float) -> AsyncGenerator[HttpReply, None]:
            return _restored(carrier.stream(asked, token, seconds))

        async with aclosing(self._streamed(asked, begin)) as parts:
            async for part in parts:
                yield part

    async def _insisted(self, asked: Prediction, ask: Callable[[Deadline], Awaitable[HttpReply]]) -> HttpReply:
        deadline = self._deadline(asked)
        attempts = 0

        async def attempt() -> HttpReply:
            nonlocal attempts
            attempts += 1
            in_this = Deadline(min(in_time(deadline, self.inference.url), self._patience_s(asked, attempts)))
            reply = await ask(in_this)
            await self._check(reply, asked, deadline)
            self.pace.note(asked.model, asked.version, in_this.elapsed_s)
            return reply

        return await self._insist(attempt, asked, deadline)

    async def _streamed(
        self, asked: Prediction, begin: Callable[[str | None, float], AsyncGenerator[HttpReply, None]]
    ) -> AsyncGenerator[bytes, None]:
        """Retry a stream until it gives a first part, then yield its parts. After the first part a failure is final."""
        deadline = self._deadline(asked)
        parts: AsyncGenerator[HttpReply, None] = _nothing()

        async def begun(token: str | None) -> HttpReply:
            nonlocal parts
            await parts.aclose()
            parts = begin(token, in_time(deadline, self.inference.url))
            return await anext(parts, HttpReply(200, "", {}, b""))

        async def attempt() -> HttpReply:
            first = await self._authorized(begun, deadline)
            await self._check(first, asked, deadline)
            return first

        try:
            yield (await self._insist(attempt, asked, deadline)).body
            async for part in parts:
                await self._check(part, asked, deadline)
                yield part.body
        except DeadlineError as error:
            # The connection had only the remaining time; the error names the whole time limit.
            raise missed(error.address, deadline.seconds, error.doing) if error.address else error from None
        finally:
            await parts.aclose()

    async def _authorized(self, send: Callable[[str | None], Awaitable[HttpReply]], deadline: Deadline) -> HttpReply:
        tokens = self.inference.tokens
        return await with_token(tokens, "inference", send, deadline, is_refused=is_authorization_failure)

    async def _insist(
        self, attempt: Callable[[], Awaitable[HttpReply]], asked: Prediction, deadline: Deadline
    ) -> HttpReply:
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
        """Return the maximum wait for a reply: the deadline, or less if a lost request can be retried."""
        silence = silence_s(self.pace.seconds(asked.model, asked.version))
        policy = self.policy
        last = attempts > policy.resends or attempts == policy.attempts
        may_repeat = asked.idempotent and Failure.SILENT in policy.retried and not last
        return silence if silence is not None and may_repeat else math.inf

    async def _check(self, reply: HttpReply, asked: Prediction, deadline: Deadline) -> None:
        """Return if ``reply`` is an answer; else determine the failure, and raise it."""
        if is_answer(reply):
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
        """Return the management API for queries within the deadline of the call."""
        if self.management is None:
            return None
        return replace(self.management, policy=NO_RETRIES).during(min(REASON_DEADLINE_S, deadline.left_s))

    # Management -----------------------------------------------------------------------------------------------------

    async def models(self) -> list[RegisteredModel]:
        """Return the registered models."""
        return await management.list_models(self.managed.during())

    async def describe(
        self, model: str, version: str | None = None, deadline_s: float | None = None
    ) -> list[VersionStatus]:
        """Return the state of the versions of a model."""
        api = self.managed.during(deadline_s)
        return await self._named(api, model, management.describe(api, model, version))

    async def handler_facts(self, model: str, version: str, deadline_s: float | None = None) -> Mapping[str, Any]:
        """Ask the handler of a version to describe itself."""
        api = self.managed.during(deadline_s)
        return await self._named(api, model, management.handler_facts(api, model, version))

    async def register(self, registration: Registration, deadline_s: float | None = None) -> str:
        """Register an archive."""
        return await management.register(self.managed.during(deadline_s or management.LOADING_DEADLINE_S), registration)

    async def unregister(self, model: str, version: str | None = None) -> str:
        """Unregister a version."""
        api = self.managed.during(max(self.managed.deadline_s, management.UNREGISTER_DEADLINE_S))
        return await self._named(api, model, management.unregister(api, model, version))

    async def scale(
        self, model: str, version: str | None, workers: tuple[int, int | None], synchronous: bool = True
    ) -> str:
        """Set the minimum and maximum number of workers of a version."""
        api = self.managed.during(management.LOADING_DEADLINE_S)
        scaled = management.scale(api, model, version, workers=workers, synchronous=synchronous)
        return await self._named(api, model, scaled)

    async def set_default(self, model: str, version: str) -> str:
        """Set the default version."""
        api = self.managed.during()
        return await self._named(api, model, management.set_default(api, model, version))

    async def _named(self, api: Endpoint, model: str, call: Awaitable[T]) -> T:
        """Await ``call``; if the model is not found, add the registered ones to the error."""
        try:
            return await call
        except NotFoundError as error:
            raise await management.with_known_names(api, error, model) from None

    @property
    def managed(self) -> Endpoint:
        """The management API; raises UsageError if its address is unknown."""
        if self.management is None:
            raise UsageError("the client has no address for the management API")
        return self.management

    def _grpc(self) -> GrpcCarrier:
        if self.grpc is None:
            raise UsageError("the client has no address for the inference API over gRPC")
        return self.grpc


async def _restored(parts: AsyncGenerator[HttpReply, None]) -> AsyncGenerator[HttpReply, None]:
    """Give each part that came over gRPC the status in its body."""
    async with aclosing(parts):
        async for part in parts:
            yield restore_status(part)


async def _nothing() -> AsyncGenerator[HttpReply, None]:
    nothing: tuple[HttpReply, ...] = ()
    for reply in nothing:
        yield reply
