"""The ASGI application: requests in, replies out, over any ASGI server."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from marsmith.host import descriptions, measured, page
from marsmith.host.bodies import GoneError, Message, Receive, TooLargeError, read_body
from marsmith.host.catalogue import Catalogue
from marsmith.host.keys import REFUSED, REFUSED_KIND, Keys
from marsmith.host.messages import UNAVAILABLE, HandlerRequest, Job, Reply, error
from marsmith.host.pool import Pool
from marsmith.host.routes import NoRoute, Route, route

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

# An extension of our own HTTP protocol (``connections.Exchange``); other servers do not have it.
_EXCHANGE = "marsmith.exchange"
MOST_REQUEST_BYTES = 16 << 20
_ONCE = "marsmith-idempotent"
_BODILESS = (204, 205, 304)
_JSON = {"content-type": "application/json"}
_ALWAYS = (
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
)
# Headers of a reply that belong to the connection, or that are set here.
_OWN = frozenset({"content-length", "transfer-encoding", "connection", "x-request-id", "ts_stream_next"})


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        request_bytes: largest body.
        drain_s: time for requests in work when the application ends, in seconds.
    """

    request_bytes: int = MOST_REQUEST_BYTES
    drain_s: float = 30.0


class Application:
    """An ASGI application over a catalogue.

    Args:
        catalogue: made when the application starts, in its event loop.
        keys: required tokens; None: none are required.
        limits: of one request.
    """

    def __init__(
        self, catalogue: Callable[[], Catalogue], *, keys: Keys | None = None, limits: Limits | None = None
    ) -> None:
        self._make = catalogue
        self._keys = keys
        self._limits = limits or Limits()
        self._catalogue: Catalogue | None = None
        self._starting: asyncio.Lock | None = None
        self._is_closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or follow the lifespan of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            # WebSockets are closed before they are accepted.
            await send({"type": "websocket.close", "code": 1000})

    @property
    def catalogue(self) -> Catalogue:
        """The models; raises RuntimeError before the start."""
        if self._catalogue is None:
            raise RuntimeError("the application has not been started")
        return self._catalogue

    async def start(self) -> Catalogue:
        """Load all archives; an application in another one starts with its first request if it has no lifespan.

        Raises:
            MarsmithError: an archive cannot be served.
        """
        self._starting = self._starting or asyncio.Lock()
        async with self._starting:
            if self._catalogue is None:
                catalogue = self._make()
                await catalogue.start()
                self._catalogue, self._is_closing = catalogue, False
        return self._catalogue

    async def stop(self) -> None:
        """Answer what has been taken, and end all workers."""
        self._is_closing = True
        if self._catalogue is not None:
            await self._catalogue.stop(self._limits.drain_s)
            self._catalogue = None

    def is_healthy(self) -> bool:
        """Return whether every version has a worker that can answer."""
        pools = list(self._catalogue.pools()) if self._catalogue else []
        return bool(pools) and not self._is_closing and all(pool.is_ready for pool in pools)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                try:
                    await self.start()
                except Exception as problem:
                    await send({"type": "lifespan.startup.failed", "message": str(problem)})
                    return
            elif kind == "lifespan.shutdown":
                await self.stop()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = str(uuid.uuid4())
        method, path = str(scope["method"]), _path(scope)
        found = route(method, path)
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        if isinstance(found, NoRoute):
            reply = error(found.status, found.message, found.kind, request_id)
        elif self._keys and found.needs_token and not self._keys.allow(headers.get(b"authorization")):
            reply = error(400, REFUSED, REFUSED_KIND, request_id)
        elif found.action in ("predict", "explain"):
            await self._predict(found, scope, headers, request_id, receive, send)
            return
        else:
            reply = await self._tell(found, scope, request_id)
        await self._send(send, reply, request_id)

    # Predictions ------------------------------------------------------------------------------------------------------

    async def _predict(
        self, found: Route, scope: Scope, headers: Mapping[bytes, bytes], request_id: str, receive: Receive, send: Send
    ) -> None:
        try:
            body = await read_body(receive, headers.get(b"content-length"), self._limits.request_bytes)
        except GoneError:
            return
        except TooLargeError:
            # TorchServe gives no body either; the connection is of no more use, because the rest was not read.
            await self._send(send, Reply(413, {"connection": "close"}, b""), request_id)
            return
        pool = await self._pool(found, request_id)
        if isinstance(pool, Reply):
            await self._send(send, pool, request_id)
            return
        job = self._job(pool, found, scope, body, request_id)
        exchange = scope.get("extensions", {}).get(_EXCHANGE)
        if exchange is not None:
            # Then nobody works on what still waits.
            exchange.on_gone = job.reply.cancel
        pool.submit(job)
        try:
            reply = await job.reply
        except asyncio.CancelledError:
            if exchange is not None and not self._is_cancelled():
                return
            job.reply.cancel()
            raise
        if job.stream is None:
            await self._send(send, reply, request_id)
        else:
            await self._send_stream(send, reply, request_id, job.stream)

    def _job(self, pool: Pool, found: Route, scope: Scope, body: bytes, request_id: str) -> Job:
        exchange = scope.get("extensions", {}).get(_EXCHANGE)
        sent = exchange.headers if exchange is not None else scope["headers"]
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent}
        lower = {name.lower(): value for name, value in given.items()}
        content_type = lower.get("content-type")
        as_frontend = {"url_path": "", "explain": str(found.action == "explain")}
        query = bytes(scope.get("query_string", b"")).decode("latin-1")
        request = HandlerRequest(request_id, {**given, **as_frontend}, content_type, (body,), None, query)
        return new_job(pool, request, lower)

    async def _pool(self, found: Route, request_id: str) -> Pool | Reply:
        catalogue = self._catalogue or await self.start()
        if self._is_closing:
            return error(503, "the host is ending", UNAVAILABLE, request_id, {"connection": "close"})
        names = catalogue.names()
        model = found.model or (names[0] if len(names) == 1 else "")
        pool = catalogue.find(model, found.version)
        return pool or _not_found(catalogue, model, found.version, request_id)

    @staticmethod
    def _is_cancelled() -> bool:
        """Return whether this task itself was cancelled, and not only what it waits for."""
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    # Everything else --------------------------------------------------------------------------------------------------

    async def _tell(self, found: Route, scope: Scope, request_id: str) -> Reply:
        """Answer what needs no worker, except for a handler's own description."""
        catalogue = self._catalogue or await self.start()
        if found.model:
            return await self._tell_of_model(catalogue, found, scope, request_id)
        if found.action == "page":
            return Reply(200, page.headers(), page.content())
        if found.action == "metrics":
            return Reply(200, {"content-type": measured.CONTENT_TYPE}, catalogue.measured.render().encode())
        if found.action in ("ping", "ready", "v2 ready"):
            healthy = self.is_healthy()
            words = {"status": "Healthy" if healthy else "Unhealthy"}
            if found.action == "ping":
                return _json(words, 200 if healthy else 500)
            return _json({"ready": healthy}, 200 if healthy else 503)
        told: Mapping[str, Callable[[], Any]] = {
            "v2 live": lambda: {"live": True},
            "v2 server": descriptions.server_metadata,
            "models": lambda: descriptions.models([catalogue.versions(name)[0] for name in catalogue.names()]),
            "openapi": lambda: page.openapi([pool.version for pool in catalogue.pools()], with_tokens=bool(self._keys)),
        }
        return _json(told[found.action]())

    async def _tell_of_model(self, catalogue: Catalogue, found: Route, scope: Scope, request_id: str) -> Reply:
        every = found.action == "describe" and found.version == "all"
        pool = catalogue.find(found.model, None if every else found.version)
        if pool is None:
            return _not_found(catalogue, found.model, found.version, request_id)
        if found.action == "describe":
            asked = b"customized=true" in bytes(scope.get("query_string", b""))
            pools = catalogue.versions(found.model) if every else [pool]
            return _json([descriptions.described(each, await self._facts(each) if asked else None) for each in pools])
        if found.action == "v2 model":
            return _json(descriptions.model_metadata(catalogue.versions(found.model) if not found.version else [pool]))
        ready = {"name": found.model, "ready": pool.is_ready}
        return _json(ready, 200 if pool.is_ready else 503)

    async def _facts(self, pool: Pool) -> Mapping[str, Any]:
        """Ask the handler of a version to describe itself, in the queue of its predictions."""
        request = HandlerRequest(str(uuid.uuid4()), {"describe": "True"}, None, (b"",))
        job = new_job(pool, request, {})
        pool.submit(job)
        reply = await job.reply
        try:
            facts = json.loads(reply.body) if reply.status < 400 else {}
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}

    # Replies ----------------------------------------------------------------------------------------------------------

    async def _send(self, send: Send, reply: Reply, request_id: str) -> None:
        headers, body = _headers(reply, request_id), reply.body
        if reply.status in _BODILESS:
            # A client would take a body for the start of the next reply.
            body = b""
        else:
            headers.append((b"content-length", str(len(body)).encode()))
        if self._catalogue is not None:
            self._catalogue.measured.status(reply.status)
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(
        self, send: Send, first: Reply, request_id: str, stream: asyncio.Queue[bytes | None]
    ) -> None:
        headers = _headers(first, request_id)
        await send({"type": "http.response.start", "status": first.status, "headers": headers})
        part: bytes | None = first.body
        while part is not None:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            part = await stream.get()
        await send({"type": "http.response.body", "body": b""})


def new_job(pool: Pool, request: HandlerRequest, lower: Mapping[str, str], deadline_s: float = math.inf) -> Job:
    """Return the job of a request.

    Args:
        pool: where it goes.
        request: what the handler gets.
        lower: its headers with lower-case names.
        deadline_s: seconds that its sender waits; a deadline in a header may be earlier.
    """
    loop = asyncio.get_running_loop()
    now = time.monotonic()
    try:
        left_s = float(lower[pool.version.deadline_header]) / 1000 - time.time()
    except (KeyError, ValueError):
        # The handler refuses one that is not a number.
        left_s = math.inf
    safe = pool.version.is_idempotent and lower.get(_ONCE, "").lower() != "false"
    return Job(request, loop.create_future(), now, now + min(left_s, deadline_s), safe)


def _path(scope: Scope) -> str:
    raw: bytes = scope.get("raw_path") or str(scope["path"]).encode()
    path = raw.decode("latin-1").partition("?")[0]
    root = str(scope.get("root_path", ""))
    return path.removeprefix(root) if root else path


def _headers(reply: Reply, request_id: str) -> list[tuple[bytes, bytes]]:
    own = [(name, value) for name, value in reply.headers.items() if name not in _OWN]
    kept = [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in own]
    if reply.headers.get("connection") == "close":
        kept.append((b"connection", b"close"))
    return [*kept, (b"x-request-id", request_id.encode()), *_ALWAYS]


def _not_found(catalogue: Catalogue, model: str, version: str | None, request_id: str) -> Reply:
    kind, told = catalogue.missing(model, version)
    return error(404, told, kind, request_id)


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, _JSON, (json.dumps(value, indent=2) + "\n").encode())
