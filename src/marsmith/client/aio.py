"""Asynchronous client: the same calls, answers, errors, retries and tokens as the blocking client.

::

    async with AsyncClient.for_project(find_project()) as client:
        reply = await client.predict("efficientnet_lite0", photo)
        async for number, outcome in client.predict_many("efficientnet_lite0", photos, concurrency=16):
            ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from marsmith import run_state
from marsmith.client.async_http import AsyncTransport
from marsmith.client.calls import Calls, Prediction, sent_headers
from marsmith.client.deadline import RENEWING, Deadline
from marsmith.client.endpoint import Endpoint, server_of
from marsmith.client.grpc import grpc_target
from marsmith.client.http import HttpReply, HttpRequest, Transport, missed
from marsmith.client.key_file import Role
from marsmith.client.management import RegisteredModel, Registration, VersionStatus
from marsmith.client.retries import RetryPolicy
from marsmith.client.tokens import TokenSource
from marsmith.errors import ClientError, UsageError
from marsmith.project import Project
from marsmith.run_state import RunState

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """Client of one server on one event loop. See ``client.Client`` for the errors of each call."""

    def __init__(
        self,
        inference: str = "http://127.0.0.1:8080",
        management: str | None = "http://127.0.0.1:8081",
        *,
        key_file: Path | None = None,
        grpc: str | None = None,
        deadline_s: float = 30.0,
        ca_file: Path | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Create a client; nothing is sent yet. The arguments are those of ``client.Client``.

        Raises:
            MissingDependencyError: aiohttp is not installed.
            UsageError: ``ca_file`` cannot be read.
        """
        policy = retries or RetryPolicy()
        self._carrier = AsyncCarrier(AsyncTransport(ca_file))
        # A token is renewed rarely, in a thread with a blocking transport.
        self._renewals = Transport(ca_file)
        tokens = AsyncTokens(TokenSource(key_file, self._renewals, management)) if key_file else None
        target = grpc_target(grpc, inference, ca_file)
        self._channel = None
        if target:
            from marsmith.client.async_grpc import AsyncInferenceChannel

            self._channel = AsyncInferenceChannel(target.address, tls=target.tls)
        self._calls = Calls(
            Endpoint(inference, "inference", self._carrier, tokens, deadline_s, policy),
            Endpoint(management, "management", self._carrier, tokens, deadline_s, policy) if management else None,
            self._channel,
            policy,
        )

    @classmethod
    def for_project(
        cls, project: Project, *, deadline_s: float = 30.0, retries: RetryPolicy | None = None
    ) -> AsyncClient:
        """Create a client of the running server of ``project``.

        Raises:
            NotRunningError: the server is not running.
        """
        return cls.of(run_state.read(project), deadline_s=deadline_s, retries=retries)

    @classmethod
    def of(cls, state: RunState, *, deadline_s: float = 30.0, retries: RetryPolicy | None = None) -> AsyncClient:
        """Create a client of a running server."""
        return cls(**server_of(state), deadline_s=deadline_s, retries=retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        self._renewals.close()
        await self._carrier.transport.close()
        if self._channel:
            await self._channel.close()

    async def ping(self) -> str:
        """Return the health that the server reports: ``Healthy`` or ``Unhealthy``. It proves neither."""
        return await self._calls.ping()

    # Inference ------------------------------------------------------------------------------------------------------

    async def predict(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        idempotent: bool = True,
    ) -> HttpReply:
        """Send one request to ``model`` and return its answer."""
        sent = sent_headers(content_type, headers)
        return await self._calls.predict(Prediction(model, body, version, sent, deadline_s, idempotent))

    async def predict_grpc(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        deadline_s: float | None = None,
        idempotent: bool = True,
    ) -> HttpReply:
        """Send one request over gRPC; the same answers and errors as ``predict``, without content type and headers."""
        return await self._calls.predict_grpc(Prediction(model, body, version, {}, deadline_s, idempotent))

    def stream(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float | None = None,
        idempotent: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Send one request and yield the parts of its answer as they arrive; parts sent at once may arrive as one."""
        sent = sent_headers(content_type, headers)
        return self._calls.stream(Prediction(model, body, version, sent, deadline_s, idempotent))

    def stream_grpc(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        deadline_s: float | None = None,
        idempotent: bool = False,
    ) -> AsyncGenerator[bytes, None]:
        """Send one request over gRPC and yield the parts of its answer; only for a streaming handler."""
        return self._calls.stream_grpc(Prediction(model, body, version, {}, deadline_s, idempotent))

    async def predict_many(
        self,
        model: str,
        bodies: Iterable[bytes] | AsyncIterable[bytes],
        *,
        concurrency: int = 16,
        version: str | None = None,
        content_type: str | None = None,
        deadline_s: float | None = None,
        idempotent: bool = True,
        grpc: bool = False,
    ) -> AsyncGenerator[tuple[int, HttpReply | ClientError], None]:
        """Send many requests, some concurrently, and yield each result as soon as it arrives.

        A failed request does not delay the others. Bodies are read one by one when there is room, so their number is
        unlimited. Closing the generator cancels the requests in flight.

        Args:
            model: model name.
            bodies: contents of the requests.
            concurrency: maximum number of requests in flight.
            version: model version; None: the default version.
            content_type: content type of each body.
            deadline_s: time limit of each request, in seconds.
            idempotent: as for ``predict``.
            grpc: whether to send the requests over gRPC.

        Yields:
            The index of a body, from 0, and its answer or its error.
        """
        if concurrency < 1:
            raise UsageError(f"concurrency must be at least 1, not {concurrency}")
        asked = Prediction(model, b"", version, sent_headers(content_type, None), deadline_s, idempotent).checked()
        ask = self._calls.predict_grpc if grpc else self._calls.predict

        async def outcome(number: int, body: bytes) -> tuple[int, HttpReply | ClientError]:
            try:
                return number, await ask(replace(asked, body=body))
            except ClientError as error:
                return number, error

        running: set[asyncio.Task[tuple[int, HttpReply | ClientError]]] = set()
        number = 0
        try:
            async for body in _each(bodies):
                running.add(asyncio.create_task(outcome(number, body)))
                number += 1
                while len(running) >= concurrency:
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        yield task.result()
            for following in asyncio.as_completed(running):
                yield await following
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    # Management -----------------------------------------------------------------------------------------------------

    async def models(self) -> list[RegisteredModel]:
        """Return the registered models, sorted by name."""
        return await self._calls.models()

    async def describe(
        self, model: str, version: str | None = None, *, deadline_s: float | None = None
    ) -> list[VersionStatus]:
        """Return the state of the versions of ``model``, or of the named one."""
        return await self._calls.describe(model, version, deadline_s)

    async def handler_facts(self, model: str, version: str, *, deadline_s: float | None = None) -> Mapping[str, Any]:
        """Return what the handler of a version reports about itself; empty if it reports nothing."""
        return await self._calls.handler_facts(model, version, deadline_s)

    async def register(self, registration: Registration | str, *, deadline_s: float | None = None) -> str:
        """Register an archive of the server's model store, by its file name or with options."""
        asked = Registration(registration) if isinstance(registration, str) else registration
        return await self._calls.register(asked, deadline_s)

    async def unregister(self, model: str, version: str | None = None) -> str:
        """Unregister a version and return the server's message. Requests in flight are cut."""
        return await self._calls.unregister(model, version)

    async def scale(
        self,
        model: str,
        *,
        version: str | None = None,
        min_workers: int,
        max_workers: int | None = None,
        synchronous: bool = True,
    ) -> str:
        """Set the number of workers of a version; ``max_workers`` of None means ``min_workers``.

        Scaling down cuts requests.
        """
        return await self._calls.scale(model, version, (min_workers, max_workers), synchronous)

    async def set_default(self, model: str, version: str) -> str:
        """Set the default version of ``model``. The server forgets it at a restart."""
        return await self._calls.set_default(model, version)


class AsyncCarrier:
    """Carries requests over a transport that does not block."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport

    async def send(self, request: HttpRequest, token: str | None, deadline_s: float) -> HttpReply:
        """Send a request and return the reply."""
        return await self.transport.send(request, token, deadline_s)

    def stream(self, request: HttpRequest, token: str | None, deadline_s: float) -> AsyncGenerator[HttpReply, None]:
        """Send a request and yield the parts of the reply."""
        return self.transport.stream(request, token, deadline_s)

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class AsyncTokens:
    """Gives the tokens of a source; files are read and tokens renewed in a thread."""

    def __init__(self, source: TokenSource) -> None:
        self.source = source

    async def get(self, role: Role, deadline: Deadline) -> str:
        """Return a valid token."""
        known = self.source.known(role)
        return known if known is not None else await self._in_thread(self.source.get, deadline, role)

    async def after_refusal(self, role: Role, refused: str, deadline: Deadline) -> str | None:
        """Return another token than the refused one."""
        return await self._in_thread(self.source.after_refusal, deadline, role, refused)

    async def _in_thread(self, ask: Callable[..., T], deadline: Deadline, *arguments: str) -> T:
        """Run ``ask`` in a thread. The deadline includes the wait for a free thread."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(ask, *arguments, deadline), deadline.left_s)
        except TimeoutError:
            raise missed("the management API", deadline.seconds, RENEWING) from None


async def _each(bodies: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(bodies, AsyncIterable):
        async for body in bodies:
            yield body
        return
    for body in bodies:
        yield body
