"""Requests over gRPC: ``Predictions`` of TorchServe's inference API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marsmith.errors import MissingDependencyError
from marsmith.load.lane import OK, Answer

if TYPE_CHECKING:
    import grpc.aio


@dataclass(frozen=True)
class GrpcTarget:
    """Where requests go.

    Attributes:
        address: ``host:port``.
        model: model name.
        version: model version; None: the default version.
        bodies: the inputs.
        token: None where the server asks for none.
        deadline_s: how long a reply may take, in seconds.
        root_certificate: PEM, for a server with TLS; None: without TLS.
    """

    address: str
    model: str
    version: str | None
    bodies: Sequence[bytes]
    token: str | None = None
    deadline_s: float = 30.0
    root_certificate: bytes | None = None

    def messages(self) -> list[bytes]:
        """Return each request as it goes over the wire."""
        from marsmith.grpc_api import INPUT_KEY, PACKAGE, message_class

        request = message_class(f"{PACKAGE}.PredictionsRequest")
        named: Mapping[str, Any] = {"model_name": self.model, "model_version": self.version or ""}
        return [bytes(request(**named, input={INPUT_KEY: body}).SerializeToString()) for body in self.bodies]


class GrpcLane:
    """One channel with a connection of its own."""

    def __init__(self, target: GrpcTarget, messages: Sequence[bytes]) -> None:
        """Create a channel; it connects at the first call.

        Raises:
            MissingDependencyError: grpcio is not installed.
        """
        try:
            import grpc.aio
        except ImportError:
            raise MissingDependencyError("grpcio", extra="grpc") from None
        from marsmith.grpc_api import SERVICE

        # By default the channels of a process share one connection, and a lane is a connection.
        options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        self._channel: grpc.aio.Channel = (
            grpc.aio.secure_channel(
                target.address, grpc.ssl_channel_credentials(target.root_certificate), options=options
            )
            if target.root_certificate
            else grpc.aio.insecure_channel(target.address, options=options)
        )
        self._call = self._channel.unary_unary(f"/{SERVICE}/Predictions")
        self._metadata = (("authorization", f"Bearer {target.token}"),) if target.token else ()
        self._messages = messages
        self._deadline_s = target.deadline_s

    async def call(self, body: int) -> Answer:
        """Send the input of that index."""
        import grpc

        try:
            reply = await self._call(self._messages[body], metadata=self._metadata, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            return Answer("timeout" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else error.code().name)
        return Answer(OK, bytes(reply))

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()
