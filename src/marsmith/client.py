"""A client of a running TorchServe: inference over REST and gRPC, and the management API.

::

    with Client.for_project(find_project()) as client:
        client.predict("efficientnet_lite0", photo).json()
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from marsmith import management, run_state
from marsmith.endpoint import Endpoint, with_token
from marsmith.errors import ClientError, NotFoundError, UsageError
from marsmith.failures import failure, restore_status, was_not_taken
from marsmith.management import RegisteredModel, Registration, VersionStatus, Worker
from marsmith.names import check_model_name, check_model_version
from marsmith.rest import Reply, Transport
from marsmith.settings import Project
from marsmith.tokens import TokenSource

if TYPE_CHECKING:
    from marsmith.grpc_api import InferenceChannel

__all__ = ["Client", "RegisteredModel", "Reply", "VersionStatus", "Worker"]


class Client:
    """Calls one server. Connections are kept, tokens are read and renewed by itself; may be used by several threads."""

    def __init__(
        self,
        inference: str = "http://127.0.0.1:8080",
        management: str | None = "http://127.0.0.1:8081",
        *,
        key_file: Path | None = None,
        grpc: str | None = None,
        deadline_s: float = 30.0,
    ) -> None:
        """Create a client; nothing is sent yet.

        Args:
            inference: base URL of the inference API.
            management: base URL of the management API; None: tokens are not renewed, and errors tell less.
            key_file: TorchServe's ``key_file.json``; None where the server asks for no token.
            grpc: ``host:port`` of the inference API over gRPC.
            deadline_s: how long a reply may take, in seconds; registering and scaling have a longer one.
        """
        self._transport = Transport()
        self._tokens = TokenSource(key_file, self._transport, management) if key_file else None
        self._inference = Endpoint(inference, "inference", self._transport, self._tokens, deadline_s)
        self._management = (
            Endpoint(management, "management", self._transport, self._tokens, deadline_s) if management else None
        )
        self._grpc_address = grpc
        self._channel: InferenceChannel | None = None
        self._lock = threading.Lock()

    @classmethod
    def for_project(cls, project: Project, *, deadline_s: float = 30.0) -> Client:
        """Create a client of the server that runs for ``project``.

        Raises:
            NotRunningError: none does.
        """
        state = run_state.read(project)
        return cls(
            state.inference,
            state.management,
            key_file=state.key_file if state.tokens else None,
            grpc=state.grpc_inference,
            deadline_s=deadline_s,
        )

    def __enter__(self) -> Client:  # noqa: PYI034, Self is not in Python 3.10
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

    def ping(self) -> str:
        """Return the health that the server claims: ``Healthy`` or ``Unhealthy``. It is no proof of either."""
        reply = self._inference.call("GET", "ping")
        if reply.status == 500 and b'"Unhealthy"' in reply.body:
            return "Unhealthy"
        error = failure(reply, "ping")
        if error:
            raise error
        return str(reply.json()["status"])

    def predict(
        self,
        model: str,
        body: bytes,
        *,
        version: str | None = None,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request to ``model`` and return its answer.

        Args:
            model: model name.
            body: the content of the request.
            version: model version; None: the default version.
            content_type: of the body; TorchServe parses the body of ``application/json`` for the handler.
            headers: further headers, which the handler can read.

        Raises:
            NotFoundError: no such model or version is registered; the tip names those that are.
            NoWorkerError: no worker of the version is ready.
            OverloadedError: its job queue is full.
            AuthorizationError: the token was refused.
            DeadlineError: no answer in time.
            ConnectionFailedError: nothing listens there.
            RequestRejectedError: the server or the handler refused the request.
        """
        path = ("predictions", *_checked_names(model, version))
        sent = {**(headers or {}), **({"Content-Type": content_type} if content_type else {})}
        reply = self._inference.call("POST", *path, body=body, headers=sent)
        return self._answer(reply, model, version)

    def predict_grpc(self, model: str, body: bytes, *, version: str | None = None) -> Reply:
        """Send one request over gRPC; the same answers and errors as ``predict``, without content type and headers."""
        _checked_names(model, version)
        channel = self._grpc()
        reply = with_token(
            self._tokens, "inference", lambda token: channel.predict(model, version, body, token, self.deadline_s)
        )
        return self._answer(restore_status(reply), model, version)

    def stream_grpc(self, model: str, body: bytes, *, version: str | None = None) -> Iterator[bytes]:
        """Send one request over gRPC and yield the parts of its answer as they come; errors as in ``predict``.

        Only for a handler that streams: TorchServe 0.12 loses the worker when one answers in a single part.
        """
        _checked_names(model, version)
        channel = self._grpc()
        rest: Iterator[Reply] = iter(())

        def begin(token: str | None) -> Reply:
            nonlocal rest
            rest = channel.stream(model, version, body, token, self.deadline_s)
            return next(rest)

        # A refused token can be tried anew only before the first part.
        first = with_token(self._tokens, "inference", begin)
        for reply in chain([first], rest):
            yield self._answer(restore_status(reply), model, version).body

    @property
    def deadline_s(self) -> float:
        """How long a reply may take, in seconds."""
        return self._inference.deadline_s

    def models(self) -> list[RegisteredModel]:
        """Return the registered models, sorted by name."""
        return management.list_models(self._managed)

    def describe(self, model: str, version: str | None = None) -> list[VersionStatus]:
        """Return how the versions of ``model`` run, or only the one named.

        Raises:
            NotFoundError: no such model or version is registered.
        """
        try:
            return management.describe(self._managed, model, version)
        except NotFoundError as error:
            raise management.with_known_names(self._managed, error, model) from None

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
    ) -> str:
        """Register an archive of the server's model store and return what the server says; see ``Registration``.

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
        return management.register(self._managed, registration)

    def unregister(self, model: str, version: str | None = None) -> str:
        """Unregister a version and return what the server says; work that it has in hand is cut.

        None means the default version, which the server refuses with 403 while there are others.
        """
        return management.unregister(self._managed, model, version)

    def scale(
        self,
        model: str,
        *,
        version: str | None = None,
        min_workers: int,
        max_workers: int | None = None,
        synchronous: bool = True,
    ) -> str:
        """Set how many workers a version has; ``max_workers`` of None means ``min_workers``. Scaling down cuts work."""
        workers = (min_workers, max_workers)
        return management.scale(self._managed, model, version, workers=workers, synchronous=synchronous)

    def set_default(self, model: str, version: str) -> str:
        """Choose the version of ``model`` that answers when none is named; the server forgets it at a restart."""
        try:
            return management.set_default(self._managed, model, version)
        except NotFoundError as error:
            raise management.with_known_names(self._managed, error, model) from None

    @property
    def _managed(self) -> Endpoint:
        if self._management is None:
            raise UsageError("the client was not told the address of the management API")
        return self._management

    def _grpc(self) -> InferenceChannel:
        if self._grpc_address is None:
            raise UsageError("the client was not told the address of the inference API over gRPC")
        from marsmith.grpc_api import InferenceChannel

        with self._lock:
            self._channel = self._channel or InferenceChannel(self._grpc_address)
            return self._channel

    def _answer(self, reply: Reply, model: str, version: str | None) -> Reply:
        """Return ``reply`` if it is an answer; else find out what it means, and raise that."""
        if was_not_taken(reply):
            raise management.why_not_taken(self._management, model, version)
        error: ClientError | None = failure(reply, f"model {model}" + (f":{version}" if version else ""))
        if isinstance(error, NotFoundError):
            error = management.with_known_names(self._management, error, model)
        if error:
            raise error
        return reply


def _checked_names(model: str, version: str | None) -> tuple[str, ...]:
    return (check_model_name(model), *(() if version is None else (check_model_version(version),)))
