"""Asynchronous gRPC channel to the inference API: the same messages, replies and errors as the blocking one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from marsmith.client.calls import Prediction
from marsmith.client.grpc import Tls, failed_reply, imported_grpc, metadata, multicallables, open_channel
from marsmith.client.grpc_messages import predictions_request
from marsmith.client.http import HttpReply


class AsyncInferenceChannel:
    """A gRPC connection to the inference API on one event loop."""

    def __init__(self, address: str, *, tls: Tls | None = None) -> None:
        """Create a channel to ``address``, a ``host:port``; it is opened by the first call.

        Raises:
            MissingDependencyError: grpcio or protobuf is not installed.
        """
        self.address = address
        self._tls = tls
        self._grpc = imported_grpc()
        self._channel: Any = None
        self._calls: dict[str, Any] = {}

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def predict(self, asked: Prediction, token: str | None, deadline_s: float) -> HttpReply:
        """Send one request and return the reply; see ``grpc_api.InferenceChannel``."""
        request = predictions_request(asked.model, asked.version, asked.body)
        sent = metadata(token, idempotent=asked.idempotent)
        try:
            answer = await self._call("Predictions")(request, timeout=deadline_s, metadata=sent)
        except self._grpc.RpcError as error:
            return failed_reply(self.address, error, deadline_s)
        return HttpReply(200, "", {}, answer.prediction)

    async def stream(self, asked: Prediction, token: str | None, deadline_s: float) -> AsyncGenerator[HttpReply, None]:
        """Send one request and yield a reply for each part of the answer; a failure is the last reply."""
        request = predictions_request(asked.model, asked.version, asked.body)
        sent = metadata(token, idempotent=asked.idempotent)
        call = self._call("StreamPredictions")(request, timeout=deadline_s, metadata=sent)
        try:
            async for answer in call:
                yield HttpReply(200, "", {}, answer.prediction)
        except self._grpc.RpcError as error:
            yield failed_reply(self.address, error, deadline_s)
        finally:
            call.cancel()

    def _call(self, name: str) -> Any:
        # A channel of grpc.aio belongs to the event loop on which it was opened.
        if self._channel is None:
            from grpc import aio

            self._channel = open_channel(aio, self.address, self._tls)
            self._calls = multicallables(self._channel)
        return self._calls[name]
