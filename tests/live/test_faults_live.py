"""What happens to requests when something breaks under a real TorchServe; the page on faults has the figures."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from marsmith import run_state
from marsmith.client.blocking_client import NO_RETRIES, Client, RetryPolicy
from marsmith.client.key_file import read_key_file
from marsmith.errors import ConnectionFailedError, OverloadedError, RequestRejectedError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import launch, lifecycle
from support.faulty_server import (
    QUEUE_SIZE,
    RESPONSE_TIMEOUT_S,
    TOKEN_LIFE_S,
    command,
    faulty_project,
    kill,
    load,
    until_full_capacity,
    worker_pids,
)
from support.live_server import tiny_archive, until
from support.raw_calls import call

MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = faulty_project(tmp_path_factory.mktemp("faults"))
    lifecycle.start(project)
    try:
        yield project
    finally:
        lifecycle.stop(project)


@pytest.fixture(scope="module")
def state(project: Project) -> RunState:
    return run_state.read(project)


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    with Client.for_project(project) as client:
        yield client


@pytest.fixture
def plain(project: Project) -> Iterator[Client]:
    """A client that sends everything once."""
    with Client.for_project(project, retries=NO_RETRIES) as client:
        yield client


def inference_token(state: RunState) -> str:
    # It reads again where the server is writing the file.
    return read_key_file(state.key_file).inference.value


@pytest.mark.parametrize("model", ["one", "two"])
def test_a_worker_killed_under_load_costs_our_client_no_request(project: Project, client: Client, model: str) -> None:
    with load(lambda: Client.for_project(project, deadline_s=120), model) as seen:
        until(lambda: seen.answered > 20)
        # Three clients keep every worker busy, so it surely has a request in hand.
        killed = worker_pids(client, model)[0]
        kill(killed)
        until_full_capacity(client, model, killed)
        before = seen.answered
        until(lambda: seen.answered > before + 20)
    assert (dict(seen.failed), seen.wrong) == ({}, 0)


def test_without_retries_the_request_in_the_hands_of_a_killed_worker_is_lost(plain: Client, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(plain.predict, "two", command(sleep=60, tell=str(told)))
        until(lambda: told.exists() and told.read_text() != "")
        kill(int(told.read_text()))
        with pytest.raises(RequestRejectedError, match="Worker died"):
            asked.result()
    # The other worker goes on.
    assert plain.predict("two", command(n=1)).json() == {"n": 1}


def test_a_handler_that_hangs_is_ended_and_other_models_do_not_notice(
    project: Project, client: Client, plain: Client
) -> None:
    hung = worker_pids(client, "frail")[0]
    with load(lambda: Client.for_project(project), "two") as others:
        began = time.monotonic()
        with pytest.raises(RequestRejectedError) as error:
            plain.predict("frail", command(sleep=600))
        assert time.monotonic() - began >= RESPONSE_TIMEOUT_S - 0.5
        until_full_capacity(client, "frail", hung)
    assert error.value.status == 500
    assert plain.predict("frail", command(n=1)).json() == {"n": 1}
    assert not psutil.pid_exists(hung)
    assert (dict(others.failed), others.wrong) == ({}, 0)
    assert others.answered > 10


def test_a_full_queue_is_told_from_a_missing_worker_and_waited_out_by_our_client(
    state: RunState, client: Client, plain: Client, tmp_path: Path
) -> None:
    told, gate = tmp_path / "pid", tmp_path / "gate"
    with ThreadPoolExecutor(QUEUE_SIZE + 2) as pool:
        held = [pool.submit(plain.predict, "narrow", command(n=0, tell=str(told), until=str(gate)))]
        until(told.exists)
        held += [pool.submit(plain.predict, "narrow", command(n=n)) for n in range(1, QUEUE_SIZE + 1)]
        until(lambda: client.describe("narrow")[0].queue_remaining == 0)
        with pytest.raises(OverloadedError) as error:
            plain.predict("narrow", command(n=8))
        on_the_wire = call(state.inference, "POST", "/predictions/narrow", inference_token(state), body=command(n=9))
        patient = pool.submit(client.predict, "narrow", command(n=10))
        # Time for it to be refused as well.
        time.sleep(0.3)
        gate.touch()
    assert error.value.retry_after_s > 0
    assert (on_the_wire.status, on_the_wire.kind) == (503, "ServiceUnavailableException")
    assert patient.result().json() == {"n": 10}
    assert [each.result().json()["n"] for each in held] == list(range(QUEUE_SIZE + 1))


def test_a_disk_that_is_full_leaves_no_half_archive_and_keeps_the_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x" * 4 * MEBIBYTE)
    (tmp_path / "some_handler.py").write_text("def handle(data, context):\n    return data\n")
    store = tmp_path / "store"
    store.mkdir()
    (store / "m.mar").write_bytes(b"the old one")
    line = [sys.executable, "-m", "marsmith", "pack", "--model-name", "m", "--version", "1.0", "--force"]
    line += ["--handler", "some_handler.py", "--extra-files", "weights.bin", "--export-path", str(store)]
    result = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, check=False, preexec_fn=_one_mebibyte_a_file
    )
    assert result.returncode == 1
    assert "m.mar cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in store.iterdir()] == ["m.mar"]
    assert (store / "m.mar").read_bytes() == b"the old one"


def _one_mebibyte_a_file() -> None:
    """Let this process write no longer file: to a program that is what a full disk is."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, resource.RLIM_INFINITY))


def test_a_server_whose_disk_is_full_refuses_a_new_version_and_goes_on(
    project: Project, state: RunState, client: Client
) -> None:
    big = project.model_store / "big.mar"
    tiny_archive(big, name="big", workers=0, members={"weights.bin": b"x" * 4 * MEBIBYTE})
    java = psutil.Process(state.pid)
    before = java.rlimit(psutil.RLIMIT_FSIZE)
    java.rlimit(psutil.RLIMIT_FSIZE, (MEBIBYTE, before[1]))
    try:
        with pytest.raises(RequestRejectedError, match=r"Failed to save model: big\.mar") as error:
            client.register(big.name, initial_workers=0)
        assert "disk of its temporary folder is full" in (error.value.tip or "")
        assert client.predict("one", command(n=1)).json() == {"n": 1}
    finally:
        java.rlimit(psutil.RLIMIT_FSIZE, before)
    # TorchServe leaves what it had unpacked so far; it goes when the server stops.
    assert [path.name for path in launch.temporary_folder(project).glob("models*.download")] != []
    client.register(big.name, initial_workers=0)
    client.unregister("big")


def test_a_token_that_expires_in_the_middle_of_a_run_is_renewed_by_the_client(
    project: Project, state: RunState
) -> None:
    first = inference_token(state)
    with load(lambda: Client.for_project(project), "one", clients=2) as seen:
        until(lambda: inference_token(state) != first, TOKEN_LIFE_S + 10)
        before = seen.answered
        until(lambda: seen.answered > before + 5)
    assert (dict(seen.failed), seen.wrong) == ({}, 0)
    assert call(state.inference, "GET", "/ping", first).status == 400


def test_when_java_is_killed_a_patient_client_gets_its_answer_from_the_next_server(
    project: Project, state: RunState, plain: Client, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    patience = RetryPolicy(unreachable_s=280.0)
    with Client.for_project(project, deadline_s=280.0, retries=patience) as patient, ThreadPoolExecutor(2) as pool:
        assert patient.predict("one", command(n=1)).json() == {"n": 1}
        lost = pool.submit(plain.predict, "one", command(n=2, sleep=60, tell=str(told)))
        until(told.exists)
        kept = pool.submit(patient.predict, "one", command(n=2, sleep=1))
        # Most likely it is in the queue then; if not, it finds no server, which must not matter to it either.
        time.sleep(0.3)
        kill(state.pid)
        with pytest.raises(ConnectionFailedError):
            lost.result()
        with pytest.raises(ConnectionFailedError):
            plain.predict("one", command(n=3))
        lifecycle.start(project)
        assert kept.result().json() == {"n": 2, "sleep": 1}
