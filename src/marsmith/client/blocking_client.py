"""Blocking client of a running TorchServe: inference over REST and gRPC, and the management API.

::

    with Client.for_project(find_project()) as client:
        client.predict("efficientnet_lite0", photo).json()

``async_client`` has the same client for an event loop. ``calls`` has the logic of both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from marsmith import run_state
from marsmith.client.blocking import BlockingCarrier, BlockingInference, BlockingTokens, each, finished
from marsmith.client.calls import Calls, Prediction, sent_headers
from marsmith.client.endpoint import Endpoint, server_of
from marsmith.client.grpc import grpc_target
from marsmith.client.http import HttpReply, Transport
from marsmith.client.management import RegisteredModel, Registration, VersionStatus, Worker
from marsmith.client.retries import NO_RETRIES, RetryPolicy
from marsmith.client.tokens import TokenSource
from marsmith.project import Project
from marsmith.run_state import RunState

if TYPE_CHECKING:
    from marsmith.client.grpc import InferenceChannel

__all__ = ["NO_RETRIES", "Client", "HttpReply", "RegisteredModel", "RetryPolicy", "VersionStatus", "Worker"]


class Client:
    """Client of one server. It keeps connections, reads and renews tokens, and may be used by several threads."""

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
        """Create a client; nothing is sent yet.

        Args:
            inference: base URL of the inference API.
            management: base URL of the management API. None: tokens are not renewed, and errors have fewer details.
            key_file: TorchServe's ``key_file.json``; None if the server requires no token.
            grpc: ``host:port`` of the inference API over gRPC. It uses TLS if ``inference`` does, unless a prefix
                ``grpcs://`` or ``grpc://`` decides.
            deadline_s: time limit of a call with all its attempts, in seconds. Registering and scaling have a longer
                one.
            ca_file: trusted certificates in PEM. None: the public ones. A self-signed certificate is its own.
            retries: policy for retries; None: ``RetryPolicy()``. ``NO_RETRIES`` sends every call once.

        Raises:
            UsageError: ``ca_file`` cannot be read.
        """
        policy = retries or RetryPolicy()
        self._transport = Transport(ca_file)
        self._tokens = TokenSource(key_file, self._transport, management) if key_file else None
        tokens = BlockingTokens(self._tokens) if self._tokens else None
        carrier = BlockingCarrier(self._transport)
        self._target = grpc_target(grpc, inference, ca_file)
        self._channel: InferenceChannel | None = None
        self._lock = threading.Lock()
        self._calls = Calls(
            Endpoint(inference, "inference", carrier, tokens, deadline_s, policy),
            Endpoint(management, "management", carrier, tokens, deadline_s, policy) if management else None,
            BlockingInference(self._opened) if self._target else None,
            policy,
        )

    @classmethod
    def for_project(cls, project: Project, *, deadline_s: float = 30.0, retries: RetryPolicy | None = None) -> Client:
        """Create a client of the running server of ``project``.

        Raises:
            NotRunningError: the server is not running.
        """
        return cls.of(run_state.read(project), deadline_s=deadline_s, retries=retries)

    @classmethod
    def of(cls, state: RunState, *, deadline_s: float = 30.0, retries: RetryPolicy | None = None) -> Client:
        """Create a client of a running server."""
        return cls(**server_of(state), deadline_s=deadline_s, retries=retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()
        if self._channel:
            self._channel.close()

    @property
    def deadline_s(self) -> float:
        """Default time limit of a call, in seconds."""
        return self._calls.inference.deadline_s

    def ping(self) -> str:
        """Return the health that the server reports: ``Healthy`` or ``Unhealthy``. It proves neither."""
        return finished(self._calls.ping())

    # Inference ------------------------------------------------------------------------------------------------------

    def predict(
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
        """Send one request to ``model`` and return its answer.

        Args:
            model: model name.
            body: content of the request.
            version: model version; None: the default version.
            content_type: content type of the body. TorchServe parses ``application/json`` for the handler.
            headers: further headers, which the handler can read.
            deadline_s: time limit with all attempts, in seconds. None: the client's default.
            idempotent: whether the handler may process the request twice if a worker or a connection is lost. A
                prediction changes nothing, so it may. Set it to False if the handler writes data or bills for requests.

        Raises:
            NotFoundError: the model or version is not registered; the tip names the registered ones.
            NoWorkerError: no worker of the version is ready.
            OverloadedError: the job queue is full; the error says when to retry.
            AuthorizationError: the token was refused.
            DeadlineError: the answer did not arrive in time.
            ConnectionFailedError: the server does not accept connections, or its certificate is not trusted.
            RequestRejectedError: the server or the handler refused the request.
        """
        sent = sent_headers(content_type, headers)
        return finished(self._calls.predict(Prediction(model, body, version, sent, deadline_s, idempotent)))

    def predict_grpc(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        deadline_s: float | None = None,
        idempotent: bool = True,
    ) -> HttpReply:
        """Send one request over gRPC; the same answers and errors as ``predict``, without content type and headers."""
        asked = Prediction(model, body, version, {}, deadline_s, idempotent)
        return finished(self._calls.predict_grpc(asked))

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
    ) -> Iterator[bytes]:
        """Send one request and yield the parts of its answer as they arrive; arguments and errors as in ``predict``.

        Parts that the handler sends at nearly the same time may arrive as one: HTTP keeps no bounds, and a proxy may
        join them. ``stream_grpc`` keeps them. A retry is possible only before the first part, and after a lost worker
        only with ``idempotent``. A handler that does not stream gives one part.
        """
        sent = sent_headers(content_type, headers)
        return each(self._calls.stream(Prediction(model, body, version, sent, deadline_s, idempotent)))

    def stream_grpc(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        deadline_s: float | None = None,
        idempotent: bool = False,
    ) -> Iterator[bytes]:
        """Send one request over gRPC and yield the parts of its answer as they arrive; errors as in ``predict``.

        Only for a streaming handler: TorchServe 0.12 loses the worker if the handler answers in a single part.
        """
        return each(self._calls.stream_grpc(Prediction(model, body, version, {}, deadline_s, idempotent)))

    # Management -----------------------------------------------------------------------------------------------------

    def models(self) -> list[RegisteredModel]:
        """Return the registered models, sorted by name."""
        return finished(self._calls.models())

    def describe(
        self, model: str, version: str | None = None, *, deadline_s: float | None = None
    ) -> list[VersionStatus]:
        """Return the state of the versions of ``model``, or of the named one.

        Raises:
            NotFoundError: the model or version is not registered.
        """
        return finished(self._calls.describe(model, version, deadline_s))

    def probe(self, model: str, version: str, *, deadline_s: float | None = None) -> int | None:
        """Ask a version's handler to describe itself. The request waits in the same queue as predictions.

        Returns:
            The worker's process id, or None if the handler does not report it.

        Raises:
            DeadlineError: no worker answered in time.
            RequestRejectedError: the handler does not support the request, or its worker died.
        """
        pid = self.handler_facts(model, version, deadline_s=deadline_s).get("pid")
        return pid if isinstance(pid, int) else None

    def handler_facts(self, model: str, version: str, *, deadline_s: float | None = None) -> Mapping[str, Any]:
        """Return what the handler of a version reports about itself; see ``probe``. Empty if it reports nothing.

        Raises:
            DeadlineError, RequestRejectedError: as ``probe`` does.
        """
        return finished(self._calls.handler_facts(model, version, deadline_s))

    def register(
        self,
        archive: str,
        *,
        initial_workers: int | None = None,
        synchronous: bool = True,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
        response_timeout_s: int | None = None,
        startup_timeout_s: int | None = None,
        deadline_s: float | None = None,
    ) -> str:
        """Register an archive of the server's model store and return the server's message; see ``Registration``.

        Raises:
            UsageError: ``archive`` is neither a file name nor a URL.
            NotFoundError: there is no such archive.
            RequestRejectedError: 409 the version is registered already, 500 no worker could load it.
        """
        registration = Registration(
            archive,
            initial_workers=initial_workers,
            synchronous=synchronous,
            batch_size=batch_size,
            max_batch_delay_ms=max_batch_delay_ms,
            response_timeout_s=response_timeout_s,
            startup_timeout_s=startup_timeout_s,
        )
        return finished(self._calls.register(registration, deadline_s))

    def unregister(self, model: str, version: str | None = None) -> str:
        """Unregister a version and return what the server says; work that it has in hand is cut, see ``drain``.

        None means the default version, which the server refuses with 403 while there are other versions.
        """
        return finished(self._calls.unregister(model, version))

    def scale(
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
        return finished(self._calls.scale(model, version, (min_workers, max_workers), synchronous))

    def set_default(self, model: str, version: str) -> str:
        """Set the default version of ``model``. The server forgets it at a restart."""
        return finished(self._calls.set_default(model, version))

    def _opened(self) -> InferenceChannel:
        from marsmith.client.grpc import InferenceChannel

        with self._lock:
            if self._channel is None and self._target is not None:
                self._channel = InferenceChannel(self._target.address, tls=self._target.tls)
            channel = self._channel
        if channel is None:
            raise RuntimeError("the client has no address for gRPC")
        return channel
