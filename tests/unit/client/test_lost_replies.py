"""What both clients do when a server takes a request and closes the connection without a reply."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from marsmith import AsyncClient
from marsmith.client.blocking_client import NO_RETRIES, Client, RetryPolicy
from marsmith.errors import ConnectionFailedError, NotFoundError, RequestRejectedError

QUICK = RetryPolicy(pause_s=0.001)


@dataclass
class Script:
    """What the server is to answer, in order: a status and JSON, or None for no reply at all; and what it was sent."""

    answers: list[tuple[int, Any] | None] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def scripted() -> Iterator[tuple[str, Script]]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            script.seen.append(f"{self.command} {self.path}")
            answer = script.answers.pop(0)
            self.close_connection = True
            if answer is None:
                return
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def script(scripted: tuple[str, Script]) -> Script:
    scripted[1].answers.clear()
    scripted[1].seen.clear()
    return scripted[1]


Ask = Callable[..., Any]


@pytest.fixture(params=["blocking", "on a loop"])
def ask(request: pytest.FixtureRequest, scripted: tuple[str, Script]) -> Ask:
    """Make one call, by its name, with one of the two clients."""
    url = scripted[0]

    def blocking(name: str, *args: Any, retries: RetryPolicy = QUICK, **named: Any) -> Any:
        with Client(url, url, retries=retries) as client:
            return getattr(client, name)(*args, **named)

    def on_a_loop(name: str, *args: Any, retries: RetryPolicy = QUICK, **named: Any) -> Any:
        async def run() -> Any:
            async with AsyncClient(url, url, retries=retries) as client:
                return await getattr(client, name)(*args, **named)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else on_a_loop


DONE = (200, {"status": "done"})
CONFLICT = (409, {"code": 409, "type": "ConflictStatusException", "message": "already registered"})
MISSING = (404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: m"})
DIED = (507, {"code": 507, "type": "InternalServerException", "message": "Worker died."})


def test_a_prediction_is_sent_again_and_no_more_than_twice(ask: Ask, script: Script) -> None:
    script.answers = [None, DIED, (200, "answer")]
    assert ask("predict", "m", b"x").json() == "answer"
    script.answers = [None, None, DIED, (200, "too late")]
    with pytest.raises(RequestRejectedError, match="Worker died"):
        ask("predict", "m", b"x")
    assert script.answers == [(200, "too late")]


@pytest.mark.parametrize("lost", [None, DIED])
def test_a_prediction_that_must_not_happen_twice_is_sent_once(ask: Ask, script: Script, lost: Any) -> None:
    script.answers = [lost, (200, "answer")]
    with pytest.raises((ConnectionFailedError, RequestRejectedError)):
        ask("predict", "m", b"x", idempotent=False)
    assert len(script.seen) == 1


def test_without_retries_every_call_is_sent_once(ask: Ask, script: Script) -> None:
    script.answers = [None, None]
    for call in (("predict", "m", b"x"), ("ping",)):
        with pytest.raises(ConnectionFailedError, match="broke"):
            ask(*call, retries=NO_RETRIES)
    assert len(script.seen) == 2


def test_a_version_that_the_lost_request_registered_is_no_conflict(ask: Ask, script: Script) -> None:
    script.answers = [None, CONFLICT]
    assert "is registered" in ask("register", "m-1.0.mar")
    script.answers = [CONFLICT]
    with pytest.raises(RequestRejectedError) as caught:
        ask("register", "m-1.0.mar")
    assert caught.value.status == 409


def test_a_version_that_the_lost_request_unregistered_is_not_missed(ask: Ask, script: Script) -> None:
    script.answers = [None, MISSING]
    assert "is unregistered" in ask("unregister", "m", "1.0")
    script.answers = [MISSING, (200, {"models": []})]
    with pytest.raises(NotFoundError):
        ask("unregister", "m", "1.0")


def test_an_unregister_without_a_version_is_sent_once_since_the_default_may_be_another_by_then(
    ask: Ask, script: Script
) -> None:
    script.answers = [None, DONE]
    with pytest.raises(ConnectionFailedError):
        ask("unregister", "m")
    assert script.answers == [DONE]


def test_what_sets_a_value_is_sent_again(ask: Ask, script: Script) -> None:
    script.answers = [None, DONE, None, DONE]
    assert ask("scale", "m", version="1.0", min_workers=2) == "done"
    assert ask("set_default", "m", "1.0") == "done"
    numbers = "min_worker=2&max_worker=2&synchronous=true"
    assert script.seen == [f"PUT /models/m/1.0?{numbers}"] * 2 + ["PUT /models/m/1.0/set-default"] * 2
