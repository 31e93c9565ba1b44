"""The client for an event loop against a real TorchServe: the same answers and errors as the one that blocks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from marsmith import AsyncClient, run_state
from marsmith.client import RetryPolicy, tokens
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.client.http import HttpReply, HttpRequest, Transport
from marsmith.client.management import Registration
from marsmith.errors import (
    AuthorizationError,
    ClientError,
    ConnectionFailedError,
    DeadlineError,
    NotFoundError,
    OverloadedError,
    RequestRejectedError,
    UsageError,
)
from marsmith.project import Project
from support.echo_server import QUEUE_SIZE, echo_server
from support.live_server import free_ports

T = TypeVar("T")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with echo_server(tmp_path_factory.mktemp("echo")) as project:
        yield project


def using(project: Project, use: Callable[[AsyncClient], Awaitable[T]], **settings: Any) -> T:
    """Run ``use`` with a client of its own, on an event loop of its own."""

    async def run() -> T:
        async with AsyncClient.for_project(project, **settings) as client:
            return await use(client)

    return asyncio.run(run())


def answer(body: object) -> bytes:
    return json.dumps(body).encode()


def test_rest_and_grpc_answer_as_they_do_to_the_client_that_blocks(project: Project) -> None:
    async def use(client: AsyncClient) -> list[HttpReply]:
        rest = await client.predict("echo", b"12345", headers={"X-Echo": "hello"}, version="1.0")
        return [rest, await client.predict_grpc("echo", b"12345")]

    rest, grpc = using(project, use)
    with Client.for_project(project) as blocking:
        other = blocking.predict("echo", b"12345", headers={"X-Echo": "hello"}, version="1.0")
        assert (rest.status, rest.body, rest.content_type) == (other.status, other.body, other.content_type)
        assert rest.headers.keys() == other.headers.keys()
        assert grpc == blocking.predict_grpc("echo", b"12345")


def test_both_stream_the_parts_of_an_answer(project: Project) -> None:
    async def use(client: AsyncClient) -> tuple[list[bytes], list[bytes]]:
        body = answer({"parts": 3})
        rest = [part async for part in client.stream("echo", body)]
        return rest, [part async for part in client.stream_grpc("echo", body)]

    rest, grpc = using(project, use)
    assert grpc[:2] == [b"part 0", b"part 1"]
    assert json.loads(grpc[2])["version"] == "1.0"
    # Over REST, parts that come at once may be joined on their way.
    assert b"".join(rest).startswith(b"part 0part 1{")


def test_a_model_is_managed_without_blocking(project: Project) -> None:
    async def use(client: AsyncClient) -> None:
        assert await client.ping() == "Healthy"
        assert [model.name for model in await client.models()] == ["echo"]
        await client.register(Registration("echo-2.0.mar", batch_size=1))
        try:
            await client.set_default("echo", "2.0")
            assert (await client.predict("echo", b"1")).json()["version"] == "2.0"
            await client.scale("echo", version="2.0", min_workers=2)
            # TorchServe answers just before it calls the last worker ready.
            late = time.monotonic() + 30
            while (await client.describe("echo", "2.0"))[0].ready_workers < 2:
                assert time.monotonic() < late
                await asyncio.sleep(0.02)
            described = {status.model_version: status.ready_workers for status in await client.describe("echo")}
            assert described == {"1.0": 1, "2.0": 2}
        finally:
            await client.set_default("echo", "1.0")
            await client.unregister("echo", "2.0")
        with pytest.raises(NotFoundError, match=r"9\.9") as caught:
            await client.describe("echo", "9.9")
        assert caught.value.tip == "registered versions of echo: 1.0"

    using(project, use)


def test_every_failure_has_the_type_that_it_has_for_the_client_that_blocks(project: Project, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def use(client: AsyncClient) -> None:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(NotFoundError, match="did you mean 'echo'"):
                await call("ecco", b"1")
            with pytest.raises(RequestRejectedError, match="not this one"):
                await call("echo", answer({"reject": 422}))
            with pytest.raises(DeadlineError, match=r"0\.3 s"):
                await call("echo", answer({"until": str(gate)}), deadline_s=0.3)
            gate.touch()
            await call("echo", b"1")
            gate.unlink()
            with pytest.raises(UsageError):
                await call("../models", b"1")
        with pytest.raises(RequestRejectedError) as caught:
            await client.predict("echo", b"x" * 9_000_000)
        assert caught.value.status == 413

    using(project, use)


def test_a_wrong_token_is_refused(project: Project, tmp_path: Path) -> None:
    state = run_state.read(project)
    wrong = tmp_path / "key_file.json"
    data = json.loads(state.key_file.read_text())
    wrong.write_text(
        json.dumps({**data, "inference": {"key": "wrong", "expiration time": "2999-01-01T00:00:00Z"}}), encoding="utf-8"
    )

    async def use() -> None:
        async with AsyncClient(state.inference, None, key_file=wrong, grpc=state.grpc_inference) as client:
            for call in (client.predict, client.predict_grpc):
                with pytest.raises(AuthorizationError, match="refused the token"):
                    await call("echo", b"1")

    asyncio.run(use())


def test_a_server_that_is_not_there_is_told_from_one_that_refuses() -> None:
    port = free_ports(1)[0]

    async def use() -> None:
        policy = RetryPolicy(unreachable_s=0.2)
        async with AsyncClient(f"http://127.0.0.1:{port}", None, grpc=f"127.0.0.1:{port}", retries=policy) as client:
            for call in (client.predict, client.predict_grpc):
                with pytest.raises(ConnectionFailedError, match="nothing listens"):
                    await call("echo", b"1")
        async with AsyncClient("nonsense", None) as client:
            with pytest.raises(ConnectionFailedError, match="not the address"):
                await client.predict("echo", b"1")

    asyncio.run(use())


def test_many_predictions_come_as_they_are_done_each_with_its_number(project: Project) -> None:
    bodies = [answer({"labels": {"n": number}}) for number in range(30)]
    bodies[7] = answer({"reject": 422})

    async def use(client: AsyncClient) -> dict[int, HttpReply | ClientError]:
        return {number: outcome async for number, outcome in client.predict_many("echo", bodies, concurrency=3)}

    outcomes = using(project, use)
    assert sorted(outcomes) == list(range(30))
    assert isinstance(outcomes.pop(7), RequestRejectedError)
    assert all(isinstance(one, HttpReply) and one.json() == {"n": number} for number, one in outcomes.items())


def test_many_predictions_take_bodies_only_as_there_is_room_and_can_be_left_early(project: Project) -> None:
    taken = 0

    async def bodies() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"1"

    async def use(client: AsyncClient) -> None:
        many = client.predict_many("echo", bodies(), concurrency=2, grpc=True)
        async for number, outcome in many:
            assert isinstance(outcome, HttpReply)
            if number >= 5:
                break
        await many.aclose()
        assert (await client.predict("echo", b"1")).status == 200
        with pytest.raises(UsageError, match="at least 1"):
            await anext(client.predict_many("echo", [], concurrency=0))

    using(project, use)
    assert taken < 12


def test_a_full_queue_fails_no_call_and_is_told_where_it_may_not_be_retried(project: Project, tmp_path: Path) -> None:
    def many(client: AsyncClient, **work: object) -> AsyncIterator[tuple[int, HttpReply | ClientError]]:
        bodies = [answer(work)] * (2 * QUEUE_SIZE + 4)
        return client.predict_many("echo", bodies, concurrency=len(bodies))

    async def wait(client: AsyncClient) -> list[HttpReply | ClientError]:
        return [one async for _, one in many(client, sleep=0.15)]

    async def hurry(client: AsyncClient) -> list[HttpReply | ClientError]:
        gate, outcomes = tmp_path / "gate", []
        async for _, one in many(client, until=str(gate)):
            outcomes.append(one)
            # The first to come is a refusal: the others wait for it.
            gate.touch()
        return outcomes

    assert all(isinstance(one, HttpReply) for one in using(project, wait, deadline_s=120))
    refused = [one for one in using(project, hurry, retries=NO_RETRIES) if not isinstance(one, HttpReply)]
    assert refused
    assert {type(one) for one in refused} == {OverloadedError}


def test_killed_workers_and_rotated_tokens_fail_no_call(project: Project) -> None:
    state = run_state.read(project)

    def renew() -> None:
        transport = Transport()
        request = HttpRequest("GET", state.management, ("token",), {"type": "inference"})
        assert transport.send(request, token=tokens.token(state, "api"), deadline_s=10).status == 200
        transport.close()

    async def use(client: AsyncClient) -> list[HttpReply | ClientError]:
        async def disturb() -> None:
            for _ in range(2):
                await asyncio.sleep(0.3)
                workers = (await client.describe("echo"))[0].workers
                for pid in [worker.pid for worker in workers if worker.status == "READY"]:
                    # The server may not have noticed yet that one is gone.
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(renew)

        disturbance = asyncio.create_task(disturb())
        bodies = [answer({"sleep": 0.02})] * 60
        outcomes = [one async for _, one in client.predict_many("echo", bodies, concurrency=3)]
        outcomes += [one async for _, one in client.predict_many("echo", bodies[:20], concurrency=3, grpc=True)]
        await disturbance
        return outcomes

    # Longer than workers take to start on a busy machine.
    assert [one for one in using(project, use, deadline_s=120) if not isinstance(one, HttpReply)] == []
