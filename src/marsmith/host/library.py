"""The host as a library: an application to mount in another service, and a model that answers without any server.

    from marsmith.host import Model, app

    service.mount("/models", app("m.mar"))       # FastAPI, Starlette, or any other ASGI server

    with Model.load("m.mar") as model:
        labels = model(photo)                    # or: await model.answer(photo)

Each archive has worker processes of its own, so that two archives, or one that crashes, cannot hurt the caller.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from marsmith.client.failures import failure
from marsmith.client.http import HttpReply
from marsmith.errors import ClientError, UsageError
from marsmith.host.application import Application, new_job
from marsmith.host.catalogue import Catalogue, Source
from marsmith.host.measured import Measured
from marsmith.host.messages import HandlerRequest
from marsmith.host.version import Wishes
from marsmith.inputs import guess_content_type
from marsmith.json_reader import read_json

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")
_DRAIN_S = 30.0
# The program that asks has its own limit: how many requests it makes at once.
_ENDLESS = 1 << 30


def app(*archives: str | Path, workers: int | None = None, batch_size: int | None = None) -> Application:
    """Return an ASGI application that serves archives, without tokens.

    Its workers start with its lifespan, or with the first request: a server passes no lifespan to a mounted
    application. ``await application.stop()`` ends them; they end with this process in any case.

    Args:
        archives: paths of archives.
        workers: number of workers of each; None for the model config's minWorkers.
        batch_size: largest batch; None for the model config's batchSize.

    Raises:
        UsageError: no archive is named, or a number is below 1.
    """
    if not archives:
        raise UsageError("app() needs an archive")
    wishes = Wishes(workers, batch_size)
    return Application(lambda: _catalogue(tuple(map(Path, archives)), wishes))


class Model:
    """One archive that answers requests in this program; may be used by several threads and event loops.

    ``Model.load`` makes one; it is a context manager, and ``close`` ends it.
    """

    def __init__(self, archive: Path, wishes: Wishes) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"model {archive.name}", daemon=True)
        self._thread.start()
        self._catalogue: Catalogue | None = None
        try:
            self._catalogue = self._wait(self._start(archive, wishes))
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(cls, archive: str | Path, *, workers: int | None = None, batch_size: int | None = None) -> Self:
        """Load an archive, and return when it is proved and ready; arguments as for ``app``.

        Raises:
            UsageError: there is no such archive.
            ArchiveError: it cannot be opened.
            HandlerError: its handler does not load.
        """
        return cls(Path(archive), Wishes(workers, batch_size, _ENDLESS))

    def __call__(
        self, body: bytes | str, *, content_type: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Return the answer to one request: a JSON value, or bytes if the reply is not JSON.

        Args:
            body: content of the request; a text is sent as UTF-8.
            content_type: its type; None: text for a text, otherwise guessed from the bytes.
            headers: further headers.

        Raises:
            RequestRejectedError: the handler refused it; has the status.
            ClientError: it was not answered.
        """
        return self._wait(self._ask(body, content_type, headers or {}))

    async def answer(
        self, body: bytes | str, *, content_type: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Return the answer to one request in an event loop; arguments and errors as for a call."""
        return await asyncio.wrap_future(self._submit(self._ask(body, content_type, headers or {})))

    def close(self) -> None:
        """Answer what has been taken, and end the workers; may be called twice."""
        if self._loop.is_closed():
            return
        if self._catalogue is not None:
            self._wait(self._catalogue.stop(_DRAIN_S))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @staticmethod
    async def _start(archive: Path, wishes: Wishes) -> Catalogue:
        catalogue = _catalogue((archive,), wishes)
        await catalogue.start()
        return catalogue

    async def _ask(self, body: bytes | str, content_type: str | None, headers: Mapping[str, str]) -> Any:
        assert self._catalogue is not None  # noqa: S101 - a model that was not loaded is never returned
        (pool,) = self._catalogue.pools()
        content = body.encode() if isinstance(body, str) else bytes(body)
        kind = content_type or ("text/plain" if isinstance(body, str) else guess_content_type("", content))
        sent = {**headers, **({"Content-Type": kind} if kind else {}), "url_path": "", "explain": "False"}
        request = HandlerRequest(str(uuid.uuid4()), sent, kind, (content,))
        job = new_job(pool, request, {name.lower(): value for name, value in sent.items()})
        pool.submit(job)
        reply = await job.reply
        parts = [reply.body]
        while job.stream is not None and (part := await job.stream.get()) is not None:
            parts.append(part)
        given = HttpReply(reply.status, reply.headers.get("content-type", ""), reply.headers, b"".join(parts))
        refused = failure(given, str(pool.version.id))
        if refused is not None:
            raise refused
        return _value(given)

    def _submit(self, asked: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed():
            asked.close()
            raise ClientError("the model is closed")
        return asyncio.run_coroutine_threadsafe(asked, self._loop)

    def _wait(self, asked: Coroutine[Any, Any, T]) -> T:
        return self._submit(asked).result()


def _catalogue(archives: tuple[Path, ...], wishes: Wishes) -> Catalogue:
    return Catalogue(Source(archives), wishes, Measured(), lambda _: None, admit=_admit)


def _admit(archive: Path) -> None:
    """Refuse an archive that does not match its own digests, or the policy of the project here."""
    from marsmith.archive.admit import admit
    from marsmith.config.project_settings import policy_here

    admit(archive, policy_here())


def _value(reply: HttpReply) -> Any:
    try:
        return read_json(reply.body)
    except ValueError:
        return reply.body
