"""A real TorchServe behind a real Envoy: restarts cost no request, and everything else stays as it was."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from marsmith import run_state
from marsmith.client import Client
from marsmith.client.key_file import read_key_file
from marsmith.client.tokens import token
from marsmith.errors import RequestRejectedError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import supervisor_state
from marsmith.server.front import admin
from marsmith.server.front.door import Front
from marsmith.server.front.process import FRONT_VARIABLE
from marsmith.server.processes import processes_of
from support.command import marsmith as command
from support.faulty_server import QUEUE_SIZE, faulty_project, kill
from support.faulty_server import command as asked
from support.live_server import until
from support.long_tests import mostly_long
from support.raw_calls import INFERENCE, call, grpc_code, open_request
from support.steady_load import SteadyLoad, steady_load

WRONG = "not-a-token"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = faulty_project(tmp_path_factory.mktemp("front"), ("two", "narrow"), token_life_s=3600, front="envoy")
    # Java is killed again and again.
    started = command(project, "serve", "--restart", "always")
    assert started.returncode == 0, started.stderr
    yield project
    assert command(project, "stop").returncode == 0
    assert processes_of(project.run, FRONT_VARIABLE) == processes_of(project.run) == []
    for name in ("tokens.json", "ecds.json", "bootstrap.json", "upstream.json", "admin.sock"):
        assert not (project.run / "front" / name).exists()


@pytest.fixture
def state(project: Project) -> RunState:
    return run_state.read(project)


def front_pid(project: Project) -> int:
    process = Front.of(project).process
    assert process is not None
    return process.pid


def echoes(state: RunState, known: str) -> bool:
    """Whether a request with this token gets its own answer."""
    try:
        answer = call(state.inference, "POST", "/predictions/two", known, body=asked(n=1))
    except OSError:
        return False
    return answer.status == 200 and json.loads(answer.body) == {"n": 1}


def test_the_public_addresses_are_those_of_the_server_config_and_both_are_shown(
    project: Project, state: RunState
) -> None:
    shown = json.loads(command(project, "status", "--json").stdout)
    assert shown["addresses"]["inference"] == state.inference
    assert shown["front"]["pid"] == front_pid(project)
    assert shown["front"]["inference"] != state.inference
    assert b"envoy_" in call(shown["front"]["metrics"].removesuffix("/metrics"), "GET", "/metrics").body
    configured = json.loads(command(project, "config", "--json").stdout)
    assert configured["server"]["inference_address"]["value"] == state.inference
    assert configured["front"]["front"] == {"value": "envoy", "origin": "config/marsmith.yaml:1", "overrode": []}
    assert configured["front"]["inference_address behind it"]["value"] == shown["front"]["inference"]
    assert configured["differences"] == []
    # The connections of clients end at Envoy.
    port = urlsplit(state.inference).port
    listening = {connection.laddr.port for connection in processes_of(project.run, FRONT_VARIABLE)[0].net_connections()}
    assert port in listening


def test_clients_come_through_the_front(project: Project, state: RunState) -> None:
    before = admin.ask(Front.of(project).folder, "/stats?filter=stable/rest.upstream_rq_completed").split()[-1]
    with Client.for_project(project) as client:
        assert client.predict("two", asked(n=1)).json() == {"n": 1}
    after = admin.ask(Front.of(project).folder, "/stats?filter=stable/rest.upstream_rq_completed").split()[-1]
    assert int(after) == int(before) + 1


def test_wrong_and_missing_tokens_are_refused_as_by_torchserve_itself(state: RunState) -> None:
    for known in (WRONG, None):
        answers = [
            call(each.inference, "POST", "/predictions/two", known, body=b"{}")
            for each in (state, state.without_front())
        ]
        assert answers[0].body == answers[1].body
        assert answers[0].status == answers[1].status == 400
        codes = [
            grpc_code(each.grpc_inference, INFERENCE, "Predictions", {1: "two"}, known)
            for each in (state, state.without_front())
        ]
        assert codes[0] == codes[1] != "OK"


def test_a_body_above_the_limit_is_refused_as_by_torchserve_itself(project: Project, state: RunState) -> None:
    largest = 16_777_216
    replies = []
    for each in (state, state.without_front()):
        with open_request(each.inference, largest + 1, b"") as connection:
            head, _, body = connection.recv(1000).partition(b"\r\n\r\n")
        replies.append((head.split()[1], b"content-length: 0" in head.lower(), body))
        known, fields = read_key_file(state.key_file).inference.value, {1: "two", 3: b"x" * largest}
        assert grpc_code(each.grpc_inference, INFERENCE, "Predictions", fields, known) == "CANCELLED"
    assert replies[0] == replies[1] == (b"413", True, b"")
    with Client.for_project(project) as client:
        for send, status in ((client.predict, 413), (client.predict_grpc, 499)):
            with pytest.raises(RequestRejectedError) as caught:
                send("two", b"x" * (largest + 1))
            assert caught.value.status == status
            assert "max_request_size" in str(caught.value.tip)
        assert client.predict("two", asked(n=1)).json() == {"n": 1}


@pytest.mark.parametrize("kill_number", mostly_long("kills", range(5), {0}))
def test_java_that_is_killed_costs_no_request(project: Project, state: RunState, kill_number: int) -> None:
    known = read_key_file(state.key_file).inference.value
    load = SteadyLoad(state, "two", known, body=lambda marker: asked(echo=marker, version="1.0"))
    supervisor = supervisor_state.read(project)
    assert supervisor is not None
    with steady_load(load):
        until(lambda: load.count() > 100)
        kill(state.pid)
        until(lambda: (supervisor_state.read(project) or supervisor).restarts > supervisor.restarts)
        before = load.count()
        until(lambda: load.count() > before + 100)
    # Every client sent each request once, over connections to the front that were open all the time.
    assert load.failed() == []
    assert load.wrong(lambda version, began_s, ended_s: version == "1.0") == []
    assert set(load.by_way()) == {"rest closed", "rest open", "grpc closed"}
    # The token of the first TorchServe is good for the second one, until it expires.
    assert read_key_file(state.key_file).inference.value != known
    assert echoes(run_state.read(project), known)
    assert run_state.read(project).inference == state.inference


def test_a_full_queue_is_answered_at_once_and_the_request_is_not_sent_again(
    state: RunState, project: Project, tmp_path: Path
) -> None:
    told, gate = tmp_path / "pid", tmp_path / "gate"
    folder = Front.of(project).folder
    repeated = admin.ask(folder, "/stats?filter=stable/rest.upstream_rq_retry$")
    known = read_key_file(state.key_file).inference.value
    with Client.for_project(project) as client, ThreadPoolExecutor(QUEUE_SIZE + 1) as pool:
        held = [pool.submit(client.predict, "narrow", asked(n=0, tell=str(told), until=str(gate)))]
        until(told.exists)
        held += [pool.submit(client.predict, "narrow", asked(n=n)) for n in range(1, QUEUE_SIZE + 1)]
        until(lambda: client.describe("narrow")[0].queue_remaining == 0)
        try:
            refused = call(state.inference, "POST", "/predictions/narrow", known, body=asked(n=9))
        finally:
            gate.touch()
        assert [each.result().json()["n"] for each in held] == list(range(QUEUE_SIZE + 1))
    assert (refused.status, refused.kind) == (503, "ServiceUnavailableException")
    assert admin.ask(folder, "/stats?filter=stable/rest.upstream_rq_retry$") == repeated


def test_a_token_that_was_rotated_is_refused_with_those_of_earlier_servers(project: Project, state: RunState) -> None:
    known = read_key_file(state.key_file).inference.value
    assert echoes(state, known)
    new = token(state, "inference", rotate=True)
    assert not echoes(state, known)
    assert echoes(state, new)
    until(lambda: new in (Front.of(project).folder / "tokens.json").read_text())
    assert json.loads((Front.of(project).folder / "tokens.json").read_text())["earlier"] == {}


def test_envoy_that_is_killed_answers_again_within_a_second_and_while_java_restarts_too(
    project: Project, state: RunState
) -> None:
    known = read_key_file(state.key_file).inference.value
    taken: list[float] = []
    # The machine may be busy, but not each time.
    while not taken or (min(taken) >= 1 and len(taken) < 5):
        first, began = front_pid(project), time.monotonic()
        kill(first)
        until(lambda: echoes(state, known))
        taken.append(time.monotonic() - began)
    assert min(taken) < 1, taken
    second = front_pid(project)
    assert second != first
    kill(state.pid)
    kill(second)
    # TorchServe takes seconds, Envoy does not wait for it.
    until(lambda: Front.of(project).process is not None)
    until(lambda: echoes(run_state.read(project), known))
    assert "Envoy ended by itself, and was started again" in (project.run / "supervisor.log").read_text()


def test_after_sigkill_of_everything_the_next_start_works_and_tokens_are_still_good(
    project: Project, state: RunState
) -> None:
    known = read_key_file(state.key_file).inference.value
    supervisor = supervisor_state.read(project)
    assert supervisor is not None
    kill(supervisor.pid)
    for process in [*processes_of(project.run), *processes_of(project.run, FRONT_VARIABLE)]:
        kill(process.pid)
    started = command(project, "serve")
    assert started.returncode == 0, started.stderr
    assert echoes(state, known)


def test_a_start_without_the_front_by_one_flag(project: Project, state: RunState) -> None:
    assert command(project, "stop").returncode == 0
    started = command(project, "serve", "--front", "none")
    assert started.returncode == 0, started.stderr
    alone = run_state.read(project)
    assert (alone.inference, alone.backend) == (state.inference, None)
    assert Front.of(project).process is None
    assert echoes(alone, read_key_file(alone.key_file).inference.value)
    # The setting says otherwise, and `marsmith config` tells.
    configured = command(project, "config", "--json")
    assert configured.returncode == 1
    assert [each["key"] for each in json.loads(configured.stdout)["differences"]] == ["front"]
    assert command(project, "stop").returncode == 0


def test_a_port_that_is_taken_is_one_line_and_nothing_runs(project: Project) -> None:
    config = project.server_config.read_text()
    port = next(int(line.rpartition(":")[2]) for line in config.splitlines() if line.startswith("inference_address"))
    with socket.create_server(("127.0.0.1", port)):
        refused = command(project, "serve")
    assert refused.returncode == 1
    assert f"port 127.0.0.1:{port} (inference_address) is in use by" in refused.stderr
    assert processes_of(project.run, FRONT_VARIABLE) == processes_of(project.run) == []
