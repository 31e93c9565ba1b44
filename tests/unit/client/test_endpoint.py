"""Calls that are sent again: what is told of them in the end."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.client import Client, RetryPolicy
from marsmith.client.deadline import Deadline
from marsmith.client.endpoint import insist, server_of
from marsmith.client.http import missed, unreachable
from marsmith.errors import ConnectionFailedError, DeadlineError, NotRunningError
from marsmith.project import Project
from marsmith.run_state import RunState

URL = "http://127.0.0.1:8080"


def test_a_missed_deadline_is_told_as_the_caller_set_it_not_as_the_last_attempt_had_it() -> None:
    failures = [unreachable(URL), missed(URL, 0.123), missed(URL, 0.046)]

    async def attempt() -> None:
        raise failures.pop(0)

    async def call() -> None:
        policy = RetryPolicy(resends=1, pause_s=0.001)
        await insist(attempt, policy=policy, deadline=Deadline(60), pause=asyncio.sleep, idempotent=True)

    with pytest.raises(DeadlineError, match=f"^no answer from {URL} within 60 s$") as caught:
        asyncio.run(call())
    assert caught.value.tip is not None
    assert failures == []


def test_any_other_failure_is_told_as_it_came() -> None:
    refused = DeadlineError("model echo: the job waited too long")

    async def attempt() -> None:
        raise refused

    async def call() -> None:
        await insist(attempt, policy=RetryPolicy(), deadline=Deadline(60), pause=asyncio.sleep, idempotent=False)

    with pytest.raises(DeadlineError) as caught:
        asyncio.run(call())
    assert caught.value is refused


def test_a_server_that_says_nothing_is_waited_for_as_long_as_was_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, None) as client, pytest.raises(DeadlineError, match=r"within 0\.25 s$"):
            client.predict("echo", b"1", deadline_s=0.25)


def test_when_the_time_is_up_after_a_pause_the_failure_before_it_is_told() -> None:
    async def attempt() -> None:
        raise unreachable(URL)

    async def oversleep(_: float) -> None:
        await asyncio.sleep(0.06)

    async def call() -> None:
        await insist(attempt, policy=RetryPolicy(), deadline=Deadline(0.05), pause=oversleep, idempotent=True)

    with pytest.raises(ConnectionFailedError, match="nothing listens"):
        asyncio.run(call())


@pytest.mark.parametrize("tokens", [True, False])
def test_a_client_of_a_state_calls_the_server_of_that_state(tmp_path: Path, tokens: bool) -> None:
    state = RunState(
        1, 0.0, "http://h:1", "http://h:2", "http://h:3", "h:4", "h:5", tmp_path, tokens=tokens, ca_file=None
    )
    assert server_of(state) == {
        "inference": "http://h:1",
        "management": "http://h:2",
        "key_file": tmp_path / "key_file.json" if tokens else None,
        "grpc": "h:4",
        "ca_file": None,
    }
    project = Project(tmp_path)
    with pytest.raises(NotRunningError):
        Client.for_project(project)
    run_state.write(project, state)
    with Client.for_project(project, deadline_s=3) as written, Client.of(state, deadline_s=3) as given:
        assert written.deadline_s == given.deadline_s == 3
