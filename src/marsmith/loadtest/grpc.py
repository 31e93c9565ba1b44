"""gRPC connections of a load test: ``Predictions`` of TorchServe's inference API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marsmith.client.failures import problem_in, restore_status
from marsmith.client.grpc import GrpcTarget, failed_reply, imported_grpc, metadata, open_channel
from marsmith.client.grpc_messages import SERVICE, message_class, predictions_request
from marsmith.client.http import HttpReply
from marsmith.client.tokens import TokenAccess
from marsmith.errors import ConnectionFailedError, DeadlineError
from marsmith.loadtest.connection import OK, TOKEN_REFUSED, Answer, answer_of
from marsmith.loadtest.shared_requests import SharedRequests

# By default gRPC channels of a process share one connection; here each channel needs its own.
_OF_ITS_OWN = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True)
class GrpcRequests:
    """A model on a gRPC server, with the inputs to send.

    Attributes:
        target: the gRPC API.
        model: model name.
        version: model version; None: the default version.
        bodies: the inputs.
        tokens: source of tokens; None if the server requires none.
        deadline_s: time limit for a reply, in seconds.
    """

    target: GrpcTarget
    model: str
    version: str | None
    bodies: Sequence[bytes]
    tokens: TokenAccess | None = None
    deadline_s: float = 30.0

    def messages(self) -> list[bytes]:
        """Return each request, serialized."""
        requests = [predictions_request(self.model, self.version, body) for body in self.bodies]
        return [bytes(request.SerializeToString()) for request in requests]


Metadata = tuple[tuple[str, str], ...]


class GrpcConnection:
    """A gRPC channel with a connection of its own."""

    def __init__(self, requests: GrpcRequests, messages: Sequence[bytes], shared: SharedRequests[Metadata]) -> None:
        """Create a channel; it connects at the first call.

        Raises:
            MissingDependencyError: grpcio is not installed.
        """
        self._grpc = imported_grpc()
        from grpc import aio

        self._channel: Any = open_channel(aio, requests.target.address, requests.target.tls, _OF_ITS_OWN)
        self._call = self._channel.unary_unary(f"/{SERVICE}/Predictions")
        self._parse = message_class("PredictionResponse").FromString
        self._address, self._deadline_s = requests.target.address, requests.deadline_s
        self._messages = messages
        self._shared = shared

    @classmethod
    def metadata(cls, token: str | None) -> Metadata:
        """Return the metadata of each request."""
        return metadata(token)

    async def call(self, body: int) -> Answer:
        """Send the input of that index. If the token is refused and there is a newer one, send it once more."""
        answer = await self._send(body, self._deadline_s)
        if answer.verdict != TOKEN_REFUSED:
            return answer
        return await self._shared.again(answer, lambda left_s: self._send(body, left_s), self._deadline_s)

    async def _send(self, body: int, deadline_s: float) -> Answer:
        try:
            reply = await self._call(self._messages[body], metadata=self._shared.content, timeout=deadline_s)
        except self._grpc.RpcError as error:
            return _judged(self._address, error, deadline_s)
        prediction: bytes = self._parse(reply).prediction
        if problem_in(prediction) is None:
            return Answer(OK, prediction)
        return answer_of(restore_status(HttpReply(200, "", {}, prediction)))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()


def _judged(address: str, error: Any, deadline_s: float) -> Answer:
    """Turn a failed call into an answer, as the client does."""
    try:
        return answer_of(failed_reply(address, error, deadline_s))
    except DeadlineError:
        return Answer("timeout")
    except ConnectionFailedError as failure:
        return Answer("connection refused" if failure.refused else "connection lost")
