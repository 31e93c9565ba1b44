"""gRPC beside REST, in the same event loop: TorchServe's inference API, and the Open Inference Protocol.

A handler sees no metadata, and the status of its reply is in the reply's body only, as with TorchServe. Only the Open
Inference Protocol gives an error of a handler as a status of the call.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from marsmith.client.failures import problem_in
from marsmith.client.grpc import imported_grpc
from marsmith.client.grpc_messages import METHODS, SERVICE, message_class
from marsmith.errors import ServerError
from marsmith.host import descriptions, oip_messages
from marsmith.host.application import Application, new_job
from marsmith.host.keys import REFUSED, Keys
from marsmith.host.messages import HandlerRequest, Job, Reply
from marsmith.host.pool import Pool

OIP_SERVICES = ("inference.GRPCInferenceService", "org.pytorch.serve.grpc.openinference.GRPCInferenceService")
# TorchServe's own table.
_CODES = {
    400: "INVALID_ARGUMENT",
    413: "RESOURCE_EXHAUSTED",
    415: "INVALID_ARGUMENT",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "RESOURCE_EXHAUSTED",
}
_MODEL_PACKAGE = "org.pytorch.serve.archive.model"
_HTTP_PACKAGE = "org.pytorch.serve.http"
_ROOM = 1 << 16


async def start(
    application: Application, keys: Keys | None, address: str, most_bytes: int, pair: tuple[Path, Path] | None
) -> Any:
    """Start the gRPC server; its ``stop`` ends it.

    Args:
        application: whose models are called.
        keys: required tokens; None: none.
        address: ``host:port``.
        most_bytes: largest request.
        pair: certificate and private key in PEM; None: no TLS.

    Raises:
        MissingDependencyError: grpcio or protobuf is not installed.
        ServerError: the port is in use.
    """
    grpc = imported_grpc()
    options = [
        # Otherwise two servers would share a port without a word.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", most_bytes + _ROOM),
        ("grpc.max_send_message_length", -1),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((_handlers(grpc, Calls(grpc, application, keys)),))
    try:
        if pair is None:
            server.add_insecure_port(address)
        else:
            certificate, key = (file.read_bytes() for file in pair)
            server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError:
        raise ServerError(
            f"cannot listen at {address} for gRPC: it is in use", tip="--grpc-port with another"
        ) from None
    await server.start()
    return server


class Calls:
    """The calls of both services."""

    def __init__(self, grpc: Any, application: Application, keys: Keys | None) -> None:
        self._grpc = grpc
        self._application = application
        self._keys = keys

    async def ping(self, _request: Any, context: Any) -> Any:
        """Return the health, as JSON in a text."""
        await self._authorize(context)
        health = "Healthy" if self._application.is_healthy() else "Unhealthy"
        return message_class("TorchServeHealthResponse")(health=json.dumps({"status": health}, indent=2) + "\n")

    async def predictions(self, request: Any, context: Any) -> Any:
        """Answer one request."""
        await self._authorize(context)
        job, reply = await self._asked(request, context)
        parts = [reply.body]
        while job.stream is not None and (part := await job.stream.get()) is not None:
            parts.append(part)
        return message_class("PredictionResponse")(prediction=b"".join(parts))

    async def stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Answer one request in parts; a handler that does not stream gives one."""
        await self._authorize(context)
        job, reply = await self._asked(request, context)
        response = message_class("PredictionResponse")
        yield response(prediction=reply.body)
        while job.stream is not None and (part := await job.stream.get()) is not None:
            yield response(prediction=part)

    async def server_live(self, _request: Any, context: Any) -> Any:
        """Say that the server runs."""
        await self._authorize(context)
        return oip_messages.message_class("ServerLiveResponse")(live=True)

    async def server_ready(self, _request: Any, context: Any) -> Any:
        """Say whether every version has a worker."""
        await self._authorize(context)
        return oip_messages.message_class("ServerReadyResponse")(ready=self._application.is_healthy())

    async def server_metadata(self, _request: Any, context: Any) -> Any:
        """Describe the server."""
        await self._authorize(context)
        return oip_messages.message_class("ServerMetadataResponse")(**descriptions.server_metadata())

    async def model_ready(self, request: Any, context: Any) -> Any:
        """Say whether a model has a worker."""
        await self._authorize(context)
        pool = await self._pool(request.name, request.version, context)
        return oip_messages.message_class("ModelReadyResponse")(ready=pool.is_ready)

    async def model_metadata(self, request: Any, context: Any) -> Any:
        """Describe a model."""
        await self._authorize(context)
        pool = await self._pool(request.name, request.version, context)
        pools = [pool] if request.version else self._application.catalogue.versions(request.name)
        return oip_messages.message_class("ModelMetadataResponse")(**descriptions.model_metadata(pools))

    async def model_infer(self, request: Any, context: Any) -> Any:
        """Answer tensors with tensors."""
        await self._authorize(context)
        pool = await self._pool(request.model_name, request.model_version, context)
        try:
            body, length = oip_messages.to_v2(request)
        except ValueError as error:
            await self._abort(context, 400, str(error))
        headers = {"Inference-Header-Content-Length": str(length)}
        asked = _request(headers, "application/octet-stream", (body,), None)
        reply = await self._answered(pool, self._job(pool, asked, headers, context), context)
        problem = problem_in(reply.body)
        if reply.status >= 400 or problem is not None:
            code = reply.status if reply.status >= 400 else 500
            await self._abort(
                context, code, problem.message if problem else reply.body[:200].decode("utf-8", "replace")
            )
        try:
            return oip_messages.from_v2(reply.body, *pool.version.id)
        except (ValueError, KeyError, TypeError) as error:
            await self._abort(context, 500, f"the reply of the handler is not KServe v2: {error}")

    # -----------------------------------------------------------------------------------------------------------------

    async def _asked(self, request: Any, context: Any) -> tuple[Job, Reply]:
        # TorchServe's code.
        pool = await self._pool(request.model_name, request.model_version, context, "INTERNAL")
        names = tuple(request.input)
        blocks = tuple(bytes(request.input[name]) for name in names)
        said = {name: str(value) for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        job = self._job(pool, _request({}, None, blocks, names), said, context)
        return job, await self._answered(pool, job, context)

    def _job(self, pool: Pool, request: HandlerRequest, said: Mapping[str, str], context: Any) -> Job:
        left_s = context.time_remaining()
        return new_job(pool, request, {name.lower(): value for name, value in said.items()}, left_s or math.inf)

    async def _answered(self, pool: Pool, job: Job, context: Any) -> Reply:
        pool.submit(job)
        try:
            reply = await job.reply
        finally:
            job.reply.cancel()
        if reply.problem is not None:
            kind, message = reply.problem
            await self._abort(context, reply.status, message, kind)
        return reply

    async def _pool(self, model: str, version: str, context: Any, code: str = "NOT_FOUND") -> Pool:
        catalogue = self._application.catalogue
        pool = catalogue.find(model, version or None)
        if pool is None:
            kind, told = catalogue.missing(model, version)
            details = f"{told}\n{_MODEL_PACKAGE}.{kind}"
            await context.abort(getattr(self._grpc.StatusCode, code), details)
            raise AssertionError
        return pool

    async def _authorize(self, context: Any) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization")
        if self._keys is not None and not self._keys.allow(given.encode() if isinstance(given, str) else None):
            await context.abort(self._grpc.StatusCode.PERMISSION_DENIED, REFUSED)

    async def _abort(self, context: Any, status: int, told: str, kind: str = "") -> None:
        """End the call with an error; TorchServe names the Java exception in a line of its own."""
        code = getattr(self._grpc.StatusCode, _CODES.get(status, "INTERNAL"))
        await context.abort(code, f"{told}\n{_HTTP_PACKAGE}.{kind}" if kind else told)


def _request(
    headers: Mapping[str, str], content_type: str | None, blocks: tuple[bytes, ...], parts: tuple[str, ...] | None
) -> HandlerRequest:
    own = {**headers, "url_path": "", "explain": "False"}
    return HandlerRequest(str(uuid.uuid4()), own, content_type, blocks, parts)


def _handlers(grpc: Any, calls: Calls) -> Any:
    """Return what finds the handler of a call by its path."""
    made = {f"/{SERVICE}/{name}": _torchserve(grpc, name, call) for name, call in _torchserve_calls(calls).items()}
    for service in OIP_SERVICES:
        for name, call in _oip_calls(calls).items():
            made[f"/{service}/{name}"] = grpc.unary_unary_rpc_method_handler(
                call,
                request_deserializer=oip_messages.message_class(f"{name}Request").FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc has no types
        def service(self, details: Any) -> Any:
            return made.get(details.method)

    return Handlers()


def _torchserve(grpc: Any, name: str, call: Callable[..., Any]) -> Any:
    streams = METHODS[name].streams_responses
    make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    return make(
        call,
        request_deserializer=message_class(METHODS[name].request).FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )


def _torchserve_calls(calls: Calls) -> Mapping[str, Callable[..., Any]]:
    return {"Ping": calls.ping, "Predictions": calls.predictions, "StreamPredictions": calls.stream}


def _oip_calls(calls: Calls) -> Mapping[str, Callable[..., Awaitable[Any]]]:
    return {
        "ServerLive": calls.server_live,
        "ServerReady": calls.server_ready,
        "ServerMetadata": calls.server_metadata,
        "ModelReady": calls.model_ready,
        "ModelMetadata": calls.model_metadata,
        "ModelInfer": calls.model_infer,
    }
