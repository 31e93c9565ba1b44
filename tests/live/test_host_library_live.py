"""The host as a library: a model in this program, and an application in another server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from marsmith.errors import ClientError, HandlerError, RequestRejectedError, UsageError
from marsmith.host import Model, app
from marsmith.host.application import Application
from support.host_server import light_archive
from support.live_server import tiny_archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return light_archive(tmp_path_factory.mktemp("library") / "light.mar", batchSize=8)


@pytest.fixture(scope="module")
def model(archive: Path) -> Iterator[Model]:
    with Model.load(archive) as model:
        yield model


def test_a_model_answers_in_three_lines(model: Model) -> None:
    assert model("hello")["order"] == "hello"
    assert model(b"bytes", content_type="application/octet-stream")["order"] == "bytes"


def test_threads_share_a_model(model: Model) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(model, map(str, range(100))))
    assert [answer["order"] for answer in answers] == list(map(str, range(100)))
    assert len({answer["pid"] for answer in answers}) == 2


def test_event_loops_share_a_model(model: Model) -> None:
    async def many() -> list[Any]:
        return list(await asyncio.gather(*(model.answer(str(number)) for number in range(50))))

    assert [answer["order"] for answer in asyncio.run(many())] == list(map(str, range(50)))
    assert len(asyncio.run(many())) == 50


def test_a_refusal_is_an_error_with_its_status(model: Model) -> None:
    with pytest.raises(RequestRejectedError) as caught:
        model("refuse")
    assert caught.value.status == 422


def test_what_cannot_be_loaded_leaves_nothing_behind(tmp_path: Path) -> None:
    before = len(psutil.Process().children())
    broken = tiny_archive(tmp_path / "broken.mar", handler="raise ValueError('no weights')\n")
    with pytest.raises(HandlerError, match="no weights"):
        Model.load(broken)
    with pytest.raises(UsageError, match="no archive"):
        Model.load(tmp_path / "none.mar")
    with pytest.raises(UsageError, match="at least 1"):
        Model.load(broken, workers=0)
    assert len(psutil.Process().children()) == before


def test_a_closed_model_says_so(archive: Path) -> None:
    model = Model.load(archive, workers=1)
    model.close()
    model.close()
    with pytest.raises(ClientError, match="closed"):
        model("x")


async def call(
    application: Application, path: str, body: bytes = b"", *, root: str = "", method: str = "POST"
) -> tuple[int, Any]:
    """Call an application as an ASGI server does."""
    scope = {
        "type": "http",
        "method": method,
        "path": root + path,
        "root_path": root,
        "query_string": b"",
        "headers": [],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_an_application_follows_the_lifespan_of_its_server(archive: Path) -> None:
    async def run() -> list[str]:
        application = app(archive, workers=1)
        said: list[str] = []
        events = iter(["lifespan.startup", "lifespan.shutdown"])

        async def receive() -> dict[str, Any]:
            if said:
                assert (await call(application, "/predictions/light", b"x"))[0] == 200
            return {"type": next(events)}

        async def send(message: Any) -> None:
            said.append(message["type"])

        await application({"type": "lifespan"}, receive, send)
        return said

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_mounted_application_starts_with_its_first_request(archive: Path) -> None:
    async def run() -> None:
        application = app(archive, workers=1)
        answers = await asyncio.gather(
            *(call(application, "/predictions/light", b"x", root="/models") for _ in range(5))
        )
        assert {status for status, _ in answers} == {200}
        assert (await call(application, "/ping", root="/models", method="GET"))[1] == {"status": "Healthy"}
        await application.stop()

    asyncio.run(run())


def test_a_failed_start_is_told_to_the_server(tmp_path: Path) -> None:
    async def run() -> dict[str, Any]:
        said: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            said.append(message)

        await app(tmp_path / "none.mar")({"type": "lifespan"}, receive, send)
        return said[0]

    failed = asyncio.run(run())
    assert failed["type"] == "lifespan.startup.failed"
    assert "none.mar" in failed["message"]
