"""Draining, scaling and unregistering versions of a real TorchServe that have work in hand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.cli import main
from marsmith.client.blocking_client import NO_RETRIES, Client, HttpReply
from marsmith.client.drain import DrainProgress, drain
from marsmith.errors import DeadlineError, NotFoundError, RequestRejectedError
from marsmith.project import Project
from support.live_server import make_project, running, tiny_archive

# Each makes a file, sleeps as long as it is told to, and answers when it ended, by the one clock of the machine; they
# differ in what they answer when they are asked to describe themselves.
HANDLER = """
import json, os, time

def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [DESCRIBED]
    seconds, begun = bytes(data[0]["body"]).decode().split(" ", 1)
    open(begun, "x").close()
    time.sleep(float(seconds))
    return [str(time.monotonic())]
"""
NAMED = HANDLER.replace("DESCRIBED", 'json.dumps({"pid": os.getpid()})')
MUTE = HANDLER.replace("DESCRIBED", 'data[0]["body"]')
LISTED = HANDLER.replace("DESCRIBED", '"[1, 2]"')


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("drain")
    made = [
        ("named", "1.0", NAMED, 2),
        ("named", "2.0", NAMED, 1),
        ("mute", "1.0", MUTE, 1),
        ("listed", "1.0", LISTED, 1),
    ]
    archives = {
        f"{name}-{version}.mar": tiny_archive(
            root / f"{name}-{version}.mar", name=name, version=version, handler=handler, workers=workers
        )
        for name, version, handler, workers in made
    }
    project = make_project(root / "project", archives)
    with running(project):
        yield project


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    with Client.for_project(project, retries=NO_RETRIES) as client:
        yield client


@dataclass
class Sender:
    """Sends requests to version 1.0 that take as long as they say."""

    client: Client
    folder: Path
    pool: ThreadPoolExecutor

    def begin(self, model: str, *seconds: float) -> list[Future[HttpReply]]:
        """Send requests, and return once all of them are with a worker or in its queue."""
        begun = [self.folder / str(index) for index in range(len(seconds))]
        bodies = [f"{each} {path}".encode() for each, path in zip(seconds, begun, strict=True)]
        # Shorter than the client's own deadline: what TorchServe drops is waited for in vain.
        asked = [self.pool.submit(self.client.predict, model, body, version="1.0", deadline_s=12) for body in bodies]
        late = time.monotonic() + 10
        # In this order none is counted twice that goes from the queue to a worker meanwhile.
        while sum(path.exists() for path in begun) + self._pending(model) < len(seconds):
            assert time.monotonic() < late
            time.sleep(0.02)
        return asked

    def _pending(self, model: str) -> int:
        return self.client.describe(model, "1.0")[0].queue_pending


@pytest.fixture
def sender(client: Client, tmp_path: Path) -> Iterator[Sender]:
    with ThreadPoolExecutor(6) as pool:
        yield Sender(client, tmp_path, pool)


def drain_all(client: Client, model: str, asked: list[Future[HttpReply]]) -> list[DrainProgress]:
    """Drain version 1.0, check that no worker had anything in hand after it, and return its progress."""
    seen: list[DrainProgress] = []
    drain(client, model, "1.0", timeout_s=20, on_progress=seen.append)
    drained = time.monotonic()
    assert all(float(one.result().body) <= drained for one in asked)
    return seen


def test_a_probe_is_answered_by_the_worker_that_names_itself(client: Client) -> None:
    pids = {worker.pid for worker in client.describe("named", "1.0")[0].workers}
    assert {client.probe("named", "1.0") for _ in range(20)} == pids
    with pytest.raises(NotFoundError):
        client.probe("named", "9.0")


def test_drain_waits_for_the_one_worker_of_two_that_is_still_busy(client: Client, sender: Sender) -> None:
    seen = drain_all(client, "named", sender.begin("named", 2.0, 4.0))
    assert {1, 2} <= {progress.busy for progress in seen}
    assert seen[-1] == DrainProgress(pending=0, busy=0, workers=2)


def test_drain_waits_for_the_queue(client: Client, sender: Sender) -> None:
    seen = drain_all(client, "named", sender.begin("named", *[1.0] * 6))
    assert max(progress.pending for progress in seen) > 0


def test_a_single_worker_that_does_not_know_the_question_is_drained_too(client: Client, sender: Sender) -> None:
    with pytest.raises(RequestRejectedError, match="Prediction failed"):
        client.probe("mute", "1.0")
    drain_all(client, "mute", sender.begin("mute", 0.7, 0.7))


def test_a_handler_that_describes_itself_with_a_list_is_drained_too(client: Client, sender: Sender) -> None:
    drain_all(client, "listed", sender.begin("listed", 0.7))


def test_a_server_that_stops_answering_is_waited_for_no_longer_than_the_drain_may_take(
    project: Project, client: Client, sender: Sender
) -> None:
    asked = sender.begin("named", *[1.0] * 6)
    java = run_state.read(project).pid
    try:
        # Not "no answer within 30 s", which is the client's own deadline.
        with pytest.raises(DeadlineError, match=r"named:1\.0 still had work after 1 s: [1-6] requests waited"):
            drain(client, "named", "1.0", timeout_s=1, on_progress=lambda _: os.kill(java, signal.SIGSTOP))
    finally:
        os.kill(java, signal.SIGCONT)
    assert {one.result().status for one in asked} == {200}


def test_what_is_still_at_work_at_the_end_is_said(client: Client, sender: Sender) -> None:
    sender.begin("named", 4.0)
    with pytest.raises(DeadlineError, match=r"named:1\.0 still had work after 1\.5 s: [01] requests waited, and 1 of"):
        drain(client, "named", "1.0", timeout_s=1.5)


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)


def test_scale_sets_the_workers_of_the_version_that_is_named(
    here: None, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", "named:2.0", "--workers", "2", "--max", "3"]) == 0
    assert capsys.readouterr().out == "named:2.0 has 2/2 workers ready, at least 2, at most 3\n"
    assert main(["scale", "named", "--version", "2.0", "--workers", "1", "--drain", "60"]) == 0
    assert len(client.describe("named", "2.0")[0].workers) == 1
    assert len(client.describe("named", "1.0")[0].workers) == 2
    assert main(["scale", "named:2.0", "--workers", "-1"]) == 2
    assert main(["scale", "named:2.0", "--workers", "2", "--max", "1"]) == 2
    assert main(["scale", "named:7.0", "--workers", "1"]) == 1
    assert "registered versions of named: 1.0, 2.0" in capsys.readouterr().err


def test_unregister_answers_what_was_sent_before_and_keeps_the_archive(
    here: None, project: Project, client: Client, sender: Sender, capsys: pytest.CaptureFixture[str]
) -> None:
    client.set_default("named", "2.0")
    assert main(["unregister", "named:2.0"]) == 2
    assert "is the default version" in capsys.readouterr().err
    asked = sender.begin("named", *[1.0] * 6)
    assert main(["unregister", "named:1.0"]) == 0
    assert [one.result().status for one in asked] == [200] * 6
    printed = capsys.readouterr()
    assert printed.out == "named:1.0 is unregistered; named-1.0.mar stays in the model store\n"
    assert "requests wait" in printed.err
    assert [status.model_version for status in client.describe("named")] == ["2.0"]
    assert (project.model_store / "named-1.0.mar").exists()


def test_unregister_now_cuts_the_work_in_hand(here: None, client: Client, sender: Sender) -> None:
    asked = sender.begin("mute", 8.0)
    assert main(["unregister", "mute", "--now"]) == 0
    # What TorchServe drops while it removes the version gets no answer at all.
    with pytest.raises((RequestRejectedError, DeadlineError), match=r"Worker (died|scaled down)|no answer"):
        asked[0].result()
    with pytest.raises(NotFoundError):
        client.describe("mute")
