"""The client against a real TorchServe: what it answers, and what each failure is called."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from marsmith import run_state
from marsmith.cli import main
from marsmith.client import RetryPolicy, tokens
from marsmith.client.blocking_client import NO_RETRIES, Client
from marsmith.client.grpc import InferenceChannel
from marsmith.client.http import HttpReply, HttpRequest, Transport
from marsmith.client.key_file import Role, read_key_file
from marsmith.errors import (
    AuthorizationError,
    ConnectionFailedError,
    DeadlineError,
    NotFoundError,
    NoWorkerError,
    OverloadedError,
    RequestRejectedError,
    UsageError,
)
from marsmith.project import Project
from marsmith.run_state import RunState
from support.echo_server import QUEUE_SIZE, echo_server, write_archive
from support.live_server import free_ports


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with echo_server(tmp_path_factory.mktemp("echo")) as project:
        yield project


@pytest.fixture(scope="module")
def state(project: Project) -> RunState:
    return run_state.read(project)


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    # Longer than a worker takes to start on a busy machine.
    with Client.for_project(project, deadline_s=120) as client:
        yield client


@pytest.fixture
def second_version(client: Client) -> Iterator[str]:
    client.register("echo-2.0.mar")
    yield "2.0"
    client.set_default("echo", "1.0")
    client.unregister("echo", "2.0")


def answer(body: object) -> bytes:
    return json.dumps(body).encode()


def test_rest_answers_with_body_content_type_and_headers(client: Client) -> None:
    reply = client.predict("echo", b"12345", headers={"X-Echo": "hello"})
    assert reply.status == 200
    assert reply.json() == {"version": "1.0", "bytes": 5, "header": "hello"}
    assert "x-request-id" in reply.headers


def test_grpc_answers_the_same_as_rest(client: Client) -> None:
    assert client.predict_grpc("echo", b"12345").json() == {"version": "1.0", "bytes": 5, "header": None}
    assert client.predict_grpc("echo", b"1", version="1.0").json()["version"] == "1.0"


def test_grpc_streams_the_parts_of_an_answer(client: Client) -> None:
    parts = list(client.stream_grpc("echo", answer({"parts": 3})))
    assert parts[:2] == [b"part 0", b"part 1"]
    assert json.loads(parts[2])["version"] == "1.0"
    with pytest.raises(NotFoundError, match="no-model"):
        list(client.stream_grpc("no-model", b"1"))


def test_a_stream_from_a_handler_that_does_not_stream_costs_a_worker(client: Client) -> None:
    with pytest.raises(RequestRejectedError, match="Worker died"):
        list(client.stream_grpc("echo", b"1"))
    late = time.monotonic() + 30
    while not client.describe("echo")[0].is_ready and time.monotonic() < late:
        time.sleep(0.2)
    assert client.predict("echo", b"1").status == 200


def test_a_body_of_several_megabytes_passes_over_both(client: Client) -> None:
    body = b"x" * 5_000_000
    assert client.predict("echo", body).json()["bytes"] == len(body)
    assert client.predict_grpc("echo", body).json()["bytes"] == len(body)


def test_a_body_above_the_servers_limit_is_refused_and_the_setting_is_named(client: Client) -> None:
    # Over gRPC the server cancels the call without a word.
    for call, status in ((client.predict, 413), (client.predict_grpc, 499)):
        with pytest.raises(RequestRejectedError) as caught:
            call("echo", b"x" * 9_000_000)
        assert caught.value.status == status
        assert "max_request_size" in str(caught.value.tip)
    assert client.predict("echo", b"1").status == 200


def test_ping_says_healthy(client: Client, state: RunState) -> None:
    assert client.ping() == "Healthy"
    channel = InferenceChannel(state.grpc_inference)
    assert channel.ping(tokens.token(state, "inference"), 10).json() == {"status": "Healthy"}
    assert channel.ping(None, 10).status == 400
    channel.close()


def test_the_connection_is_kept_between_requests(client: Client) -> None:
    for _ in range(3):
        client.predict("echo", b"1")
    adapter: Any = client._transport._session.get_adapter("http://")
    manager = adapter.poolmanager
    pools = [manager.pools[key] for key in manager.pools.keys()]  # noqa: SIM118, no mapping
    assert max(pool.num_requests for pool in pools) >= 3
    assert all(pool.num_connections == 1 for pool in pools)


def test_models_and_describe_tell_how_a_version_runs(client: Client, project: Project) -> None:
    model = client.models()[0]
    assert (model.name, model.default_version, model.archive_url) == ("echo", "1.0", "echo-1.0.mar")
    version = client.describe("echo")[0]
    assert (version.model_version, version.default, version.batch_size, version.max_batch_delay_ms) == (
        "1.0",
        True,
        1,
        1,
    )
    assert version.response_timeout_s == 20
    assert version.is_ready
    assert version.queue_remaining == QUEUE_SIZE
    worker = version.workers[0]
    assert Path(f"/proc/{worker.pid}").exists()
    assert not worker.gpu
    assert datetime.fromisoformat(worker.started).tzinfo


def test_two_versions_answer_side_by_side_and_the_default_is_switched(client: Client, second_version: str) -> None:
    answered = [client.predict("echo", b"1", version=version).json()["version"] for version in ("1.0", "2.0")]
    assert answered == ["1.0", "2.0"]
    assert client.predict_grpc("echo", b"1", version="2.0").json()["version"] == "2.0"
    client.set_default("echo", "2.0")
    assert client.predict("echo", b"1").json()["version"] == "2.0"
    assert {status.model_version: status.default for status in client.describe("echo")} == {"1.0": False, "2.0": True}
    assert [status.model_version for status in client.describe("echo", "1.0")] == ["1.0"]


def test_the_default_version_cannot_be_unregistered_while_there_are_others(client: Client, second_version: str) -> None:
    with pytest.raises(RequestRejectedError) as caught:
        client.unregister("echo")
    assert caught.value.status == 403
    assert "set-default" in str(caught.value.tip)


def test_a_version_that_is_registered_already_is_a_conflict(client: Client) -> None:
    with pytest.raises(RequestRejectedError) as caught:
        client.register("echo-1.0.mar")
    assert caught.value.status == 409


def test_batch_parameters_are_passed_on_only_where_they_are_given(client: Client, project: Project) -> None:
    write_archive(project.model_store, "bare", "1.0", config=None)
    client.register("bare-1.0.mar", batch_size=3, max_batch_delay_ms=7)
    try:
        status = client.describe("bare")[0]
        assert (status.batch_size, status.max_batch_delay_ms) == (3, 7)
        # TorchServe's -10000 after a JSON body would cap every batch at 2.
        client.unregister("bare")
        client.register("bare-1.0.mar")
        assert client.describe("bare")[0].max_batch_delay_ms == 100
    finally:
        client.unregister("bare")


def test_an_archive_that_no_worker_can_load_is_refused(client: Client, project: Project) -> None:
    write_archive(project.model_store, "broken", "1.0", handler="import no_such_module_here\n")
    with pytest.raises(RequestRejectedError, match=r"broken-1\.0\.mar.*Failed to start workers") as caught:
        client.register("broken-1.0.mar")
    assert caught.value.status == 500
    assert "broken" not in [model.name for model in client.models()]


def test_an_archive_that_is_not_in_the_store_is_not_found(client: Client) -> None:
    with pytest.raises(NotFoundError, match=r"missing-1\.0\.mar"):
        client.register("missing-1.0.mar")


@pytest.mark.parametrize("archive", ["../echo-1.0.mar", "/etc/passwd", "a/b.mar", "file:///etc/passwd", "x&url=y", ""])
def test_an_archive_outside_the_store_is_refused_before_anything_is_sent(client: Client, archive: str) -> None:
    with pytest.raises(UsageError, match="model store"):
        client.register(archive)


def test_a_url_that_the_server_does_not_allow_is_refused_by_it(client: Client) -> None:
    with pytest.raises(NotFoundError, match="does not match any allowed URL"):
        client.register("https://example.org/echo.mar")


def test_an_unknown_model_is_not_found_and_the_nearest_is_named(client: Client) -> None:
    for call in (client.predict, client.predict_grpc):
        with pytest.raises(NotFoundError, match="did you mean 'echo'") as caught:
            call("ecco", b"1")
        assert caught.value.tip == "registered models: echo"
    with pytest.raises(NotFoundError, match="did you mean 'echo'"):
        client.describe("ecco")


def test_an_unknown_version_is_not_found_and_those_that_are_there_are_named(client: Client) -> None:
    for call in (client.predict, client.predict_grpc):
        with pytest.raises(NotFoundError, match=r"9\.9") as caught:
            call("echo", b"1", version="9.9")
        assert caught.value.tip == "registered versions of echo: 1.0"
    with pytest.raises(NotFoundError):
        client.set_default("echo", "9.9")


@pytest.mark.parametrize(
    "name", ["../models", "echo/1.0", "echo?x=1", "echo#", "echo%2f1.0", "e cho", "", ".", "é", "echo\r\nX: y"]
)
def test_no_name_can_leave_its_place_in_the_url(client: Client, name: str) -> None:
    of_models = [
        lambda: client.predict(name, b""),
        lambda: client.predict_grpc(name, b""),
        lambda: client.describe(name),
        lambda: client.unregister(name),
        lambda: client.scale(name, min_workers=1),
        lambda: client.set_default(name, "1.0"),
    ]
    for call in of_models:
        with pytest.raises(UsageError):
            call()
    of_versions = [
        lambda: client.predict("echo", b"", version=name),
        lambda: client.describe("echo", name),
        lambda: client.unregister("echo", name),
        lambda: client.scale("echo", version=name, min_workers=1),
        lambda: client.set_default("echo", name),
    ]
    # Other tools give such versions, so the server is asked, and for that very version.
    refused = UsageError if name in {"../models", "echo/1.0", ""} else NotFoundError
    for call in of_versions:
        with pytest.raises(refused):
            call()
    assert [status.model_version for status in client.describe("echo", "all")] == ["1.0"]


def test_a_model_whose_name_begins_with_token_can_be_managed(client: Client, project: Project, state: RunState) -> None:
    write_archive(project.model_store, "tokenizer", "1.0")
    client.register("tokenizer-1.0.mar")
    try:
        assert client.predict("tokenizer", b"1").status == 200
        assert client.describe("tokenizer")[0].is_ready
        # The trap itself: TorchServe takes the plain path for its token API.
        import requests

        headers = {"Authorization": f"Bearer {tokens.token(state, 'management')}"}
        assert requests.get(f"{state.management}/models/tokenizer", headers=headers, timeout=10).status_code == 400
    finally:
        client.unregister("tokenizer")


def test_what_a_handler_refuses_carries_its_status_and_body_over_rest_and_grpc(client: Client) -> None:
    for call in (client.predict, client.predict_grpc):
        with pytest.raises(RequestRejectedError, match="not this one") as caught:
            call("echo", answer({"reject": 422}))
        assert caught.value.status == 422
        assert json.loads(caught.value.body)["type"] == "Refused"


def test_a_not_found_of_the_handler_itself_is_no_missing_model(client: Client) -> None:
    for call in (client.predict, client.predict_grpc):
        with pytest.raises(RequestRejectedError) as caught:
            call("echo", answer({"reject": 404}))
        assert caught.value.status == 404


def test_a_handler_that_raises_is_a_503_and_neither_overload_nor_missing_worker(client: Client) -> None:
    for call in (client.predict, client.predict_grpc):
        with pytest.raises(RequestRejectedError) as caught:
            call("echo", answer({"raise": "no"}))
        assert caught.value.status == 503


def test_no_answer_in_time_is_a_missed_deadline(project: Project, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with Client.for_project(project, deadline_s=0.5) as hasty:
        for call in (hasty.predict, hasty.predict_grpc):
            with pytest.raises(DeadlineError, match=r"0\.5 s"):
                call("echo", answer({"until": str(gate)}))
    gate.touch()
    with Client.for_project(project) as patient:
        assert patient.predict("echo", b"1").status == 200


def test_a_version_without_workers_has_no_worker(client: Client) -> None:
    client.scale("echo", min_workers=0)
    try:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(NoWorkerError, match="none of its 0 workers"):
                call("echo", b"1")
    finally:
        client.scale("echo", min_workers=1)
    assert client.predict("echo", b"1").status == 200


def flood(client: Client, way: str, gate: Path) -> list[HttpReply | OverloadedError]:
    """Send more requests at once than the job queue holds, and return what came of each.

    The worker waits for ``gate``, which the first refusal makes.
    """

    def ask(_: int) -> HttpReply | OverloadedError:
        try:
            reply: HttpReply = getattr(client, way)("echo", answer({"until": str(gate), "sleep": 0.3}))
        except OverloadedError as error:
            gate.touch()
            return error
        return reply

    with ThreadPoolExecutor(2 * QUEUE_SIZE + 4) as pool:
        return list(pool.map(ask, range(2 * QUEUE_SIZE + 4)))


@pytest.mark.parametrize("way", ["predict", "predict_grpc"])
def test_a_full_job_queue_is_overload_though_the_server_says_no_worker(
    project: Project, tmp_path: Path, way: str
) -> None:
    with Client.for_project(project, retries=NO_RETRIES) as once:
        outcomes = flood(once, way, tmp_path / "gate")
    overloaded = [outcome for outcome in outcomes if isinstance(outcome, OverloadedError)]
    assert 0 < len(overloaded) < len(outcomes)
    assert all(0 < error.retry_after_s <= 5 for error in overloaded)


def test_a_full_job_queue_fails_no_call_of_a_client_that_may_try_again(client: Client, tmp_path: Path) -> None:
    outcomes = flood(client, "predict", tmp_path)
    assert [outcome.status for outcome in outcomes if isinstance(outcome, HttpReply)] == [200] * len(outcomes)


def test_killed_workers_fail_no_call_of_a_client_that_may_try_again(client: Client) -> None:
    client.scale("echo", min_workers=2)
    stop = threading.Event()

    def ask(number: int) -> int:
        answered = 0
        while not stop.is_set():
            body = answer({"sleep": 0.02, "labels": {"of": number}})
            ask_one = client.predict if number % 2 else client.predict_grpc
            assert ask_one("echo", body).json() == {"of": number}
            answered += 1
        return answered

    try:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(4)]
            for _ in range(3):
                time.sleep(0.4)
                ready = [worker.pid for worker in client.describe("echo")[0].workers if worker.status == "READY"]
                # The server may not have noticed yet that the one killed before is gone.
                with suppress(ProcessLookupError):
                    for pid in ready[:1]:
                        os.kill(pid, signal.SIGKILL)
            stop.set()
            assert all(one.result() > 0 for one in asked)
    finally:
        stop.set()
        client.scale("echo", min_workers=1)


def test_a_request_that_must_not_be_worked_on_twice_is_not_sent_again_after_a_lost_worker(
    client: Client, tmp_path: Path
) -> None:
    worker = tmp_path / "worker"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.predict, "echo", answer({"tell": str(worker), "sleep": 60}), idempotent=False)
        while not (asked.done() or worker.exists()):
            time.sleep(0.02)
        os.kill(int(worker.read_text()), signal.SIGKILL)
        with pytest.raises(RequestRejectedError, match="Worker died"):
            asked.result()
    # The next call waits for the new worker.
    assert client.predict("echo", b"1").status == 200


def test_rest_streams_the_parts_of_an_answer_as_they_come(client: Client, tmp_path: Path) -> None:
    more = tmp_path / "more"
    stream = client.stream("echo", answer({"parts": 3, "more": str(more)}))
    # The handler waits with the next part.
    assert next(stream) == b"part 0"
    more.touch()
    # Those that come at once may be joined on their way.
    rest = b"".join(stream)
    assert rest.startswith(b"part 1")
    assert json.loads(rest.removeprefix(b"part 1"))["version"] == "1.0"
    # A handler that answers in one part costs nothing here.
    assert [json.loads(part)["bytes"] for part in client.stream("echo", b"12345")] == [5]
    with pytest.raises(NotFoundError, match="no-model"):
        list(client.stream("no-model", b"1"))
    with pytest.raises(RequestRejectedError, match="not this one"):
        list(client.stream("echo", answer({"reject": 422})))


def test_a_stream_that_is_left_early_keeps_the_client_usable(client: Client, tmp_path: Path) -> None:
    for number in range(3):
        more = tmp_path / str(number)
        stream = client.stream("echo", answer({"parts": 5, "more": str(more)}))
        assert next(stream) == b"part 0"
        stream.close()  # type: ignore[attr-defined]
        more.touch()
    assert client.predict("echo", b"1").status == 200


def test_a_token_rotated_again_and_again_while_a_client_runs_fails_no_call(client: Client, state: RunState) -> None:
    stop, transport = threading.Event(), Transport()

    def ask(way: str) -> int:
        answered = 0
        while not stop.is_set():
            assert getattr(client, way)("echo", b"1").status == 200
            answered += 1
        return answered

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask, way) for way in ("predict", "predict_grpc")]
        for _ in range(8):
            time.sleep(0.1)
            renewal = HttpRequest("GET", state.management, ("token",), {"type": "inference"})
            assert transport.send(renewal, token=tokens.token(state, "api"), deadline_s=10).status == 200
        stop.set()
        assert all(one.result() > 0 for one in asked)
    transport.close()


def test_workers_are_scaled_up_and_down(client: Client) -> None:
    client.scale("echo", min_workers=2)
    # TorchServe answers just before it calls the last worker ready.
    late = time.monotonic() + 30
    while client.describe("echo")[0].ready_workers < 2:
        assert time.monotonic() < late
        time.sleep(0.02)
    client.scale("echo", version="1.0", min_workers=1)
    status = client.describe("echo")[0]
    assert (status.min_workers, status.max_workers) == (1, 1)


def test_a_wrong_token_is_refused(state: RunState, tmp_path: Path) -> None:
    data = json.loads(state.key_file.read_text())
    for role in ("inference", "management"):
        data[role] = {"key": "wrong", "expiration time": "2999-01-01T00:00:00Z"}
    wrong = tmp_path / "key_file.json"
    wrong.write_text(json.dumps(data))
    with Client(state.inference, state.management, key_file=wrong, grpc=state.grpc_inference) as client:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(AuthorizationError, match="refused the token"):
                call("echo", b"1")
        with pytest.raises(AuthorizationError):
            client.models()
        with pytest.raises(AuthorizationError):
            client.ping()


def test_a_missing_token_is_refused(state: RunState) -> None:
    with Client(state.inference, state.management, grpc=state.grpc_inference) as client:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(AuthorizationError):
                call("echo", b"1")
        with pytest.raises(AuthorizationError):
            list(client.stream_grpc("echo", b"1"))


@pytest.mark.parametrize("role", ["management", "api"])
def test_the_token_of_another_role_is_refused(state: RunState, role: Role) -> None:
    transport = Transport()
    other = tokens.token(state, role)
    request = HttpRequest("POST", state.inference, ("predictions", "echo"), body=b"1")
    assert transport.send(request, token=other, deadline_s=10).status == 400
    inference = tokens.token(state, "inference")
    assert (
        transport.send(HttpRequest("GET", state.management, ("models",)), token=inference, deadline_s=10).status == 400
    )
    transport.close()


def test_an_expired_token_is_renewed_in_the_middle_of_a_run(client: Client, state: RunState) -> None:
    client.predict("echo", b"1")
    before = read_key_file(state.key_file).inference
    assert before.expires is not None
    while datetime.now(UTC) < before.expires:
        time.sleep(0.5)
    transport = Transport()
    request = HttpRequest("POST", state.inference, ("predictions", "echo"), body=b"1")
    assert transport.send(request, token=before.value, deadline_s=10).status == 400
    transport.close()
    assert client.predict("echo", b"1").status == 200
    assert client.predict_grpc("echo", b"1").status == 200
    assert read_key_file(state.key_file).inference.value != before.value


def test_a_token_that_somebody_else_renewed_is_read_again(client: Client, state: RunState) -> None:
    client.predict("echo", b"1")
    used = client._tokens.get("inference")  # type: ignore[union-attr]

    def renew() -> None:
        transport = Transport()
        renewal = HttpRequest("GET", state.management, ("token",), {"type": "inference"})
        assert transport.send(renewal, token=tokens.token(state, "api"), deadline_s=10).status == 200
        transport.close()

    renew()
    assert client.predict("echo", b"1").status == 200
    assert client._tokens.get("inference") != used  # type: ignore[union-attr]
    renew()
    assert len(list(client.stream_grpc("echo", answer({"parts": 2})))) == 2


def test_clients_that_renew_at_the_same_time_all_get_a_good_token(project: Project, state: RunState) -> None:
    before = read_key_file(state.key_file).inference
    assert before.expires is not None
    while not before.is_due(datetime.now(UTC)):
        time.sleep(0.3)
    start = threading.Barrier(4)

    def ask(_: int) -> str:
        with Client.for_project(project) as client:
            start.wait()
            return client.ping()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["Healthy"] * 4


def test_a_server_that_is_not_there_is_told_from_one_that_refuses() -> None:
    port = free_ports(1)[0]
    address = f"http://127.0.0.1:{port}"
    with Client(address, address, grpc=f"127.0.0.1:{port}", retries=RetryPolicy(unreachable_s=0.2)) as client:
        for call in (client.predict, client.predict_grpc):
            with pytest.raises(ConnectionFailedError, match="nothing listens") as caught:
                call("echo", b"1")
            assert caught.value.tip == "marsmith serve"


def test_without_the_management_api_the_error_still_names_the_model(state: RunState) -> None:
    # A fresh token each time: without the management API there is no new one.
    for management in (None, "http://127.0.0.1:9"):
        tokens.token(state, "inference", rotate=True)
        with (
            Client(state.inference, management, key_file=state.key_file) as client,
            pytest.raises(NotFoundError, match="model ecco"),
        ):
            client.predict("ecco", b"1")


@pytest.fixture
def here(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project's root as working folder, with two inputs in it."""
    monkeypatch.chdir(project.root)
    (project.root / "good.json").write_text("{}")
    (project.root / "bad.json").write_text('{"reject": 422}')
    (project.root / "labels.json").write_text('{"labels": {"tiger cat": 0.51, "tabby": 0.2}}')
    return project


def test_predict_prints_labels_as_a_table(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--grpc"]):
        assert main(["predict", "echo", "labels.json", *flags]) == 0
        assert capsys.readouterr().out == "LABEL      PROBABILITY\ntiger cat  0.5100\ntabby      0.2000\n"


def test_predict_prints_every_answer_though_one_input_is_bad(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "echo:1.0", "good.json", "bad.json", "labels.json"]) == 1
    printed = capsys.readouterr()
    blocks = printed.out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["good.json", "bad.json", "labels.json"]
    assert '"version": "1.0"' in blocks[0]
    assert "bad.json" in printed.err
    assert "not this one" in printed.err
    assert main(["predict", "echo", "good.json", "bad.json", "--json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert (good["input"], good["status"], good["reply"]["version"]) == ("good.json", 200, "1.0")
    assert (bad["input"], bad["status"]) == ("bad.json", 422)


def test_predict_says_once_what_is_wrong_with_the_model(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "ecco", "good.json", "labels.json"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("did you mean 'echo'") == 1
    assert printed.out == ""


def test_predict_calls_another_server_with_its_own_key_file_only(
    here: Project, state: RunState, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "echo", "good.json", "--url", state.inference]) == 1
    assert "refused the token" in capsys.readouterr().err
    for where in (["--url", state.inference], ["--grpc", "--url", state.grpc_inference]):
        # A fresh one: nobody renews it for a call that knows no management API.
        tokens.token(state, "inference", rotate=True)
        assert main(["predict", "echo", "good.json", *where, "--key-file", str(state.key_file)]) == 0


def test_a_version_is_registered_listed_and_made_the_default(here: Project, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(["register", "model_store/echo-2.0.mar"]) == 0
        assert capsys.readouterr().out == "echo:2.0 is ready: 1/1 workers, batch size 1\n"
        assert main(["set-default", "echo", "2.0"]) == 0
        capsys.readouterr()
        assert main(["models"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[0][:4] == ["MODEL", "VERSION", "DEFAULT", "READY"]
        assert sorted(line[:4] for line in lines[1:]) == [["echo", "1.0", "-", "1/1"], ["echo", "2.0", "*", "1/1"]]
        assert main(["models", "--json"]) == 0
        assert {item["model_version"] for item in json.loads(capsys.readouterr().out)} == {"1.0", "2.0"}
    finally:
        with Client.for_project(here) as client:
            client.set_default("echo", "1.0")
            client.unregister("echo", "2.0")


def test_an_archive_whose_handler_does_not_load_shows_its_traceback(
    here: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(here.model_store, "broken", "2.0", handler="import no_such_module_here\n")
    assert main(["register", "broken-2.0.mar"]) == 1
    printed = capsys.readouterr().err
    assert "no_such_module_here" in printed
    assert "no worker could load broken:2.0" in printed


def test_an_archive_whose_worker_left_without_a_word_is_tried_once_more_to_hear_why(
    here: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # As it looks where the frontend did not read the traceback before it closed the pipe.
    once = str(tmp_path / "once")
    handler = (
        f"import os\ntry:\n    open({once!r}, 'x')\nexcept OSError:\n    import no_such_module_here\nos._exit(1)\n"
    )
    write_archive(here.model_store, "silent", "1.0", handler=handler)
    assert main(["register", "silent-1.0.mar"]) == 1
    assert "no worker could load silent:1.0: ModuleNotFoundError" in capsys.readouterr().err
    with Client.for_project(here) as client, pytest.raises(NotFoundError):
        client.describe("silent")


def test_an_archive_outside_the_store_or_damaged_is_refused_before_the_server_sees_it(
    here: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outside = write_archive(tmp_path, "echo", "3.0")
    assert main(["register", str(outside)]) == 2
    assert f"TIP: cp {outside} " in capsys.readouterr().err
    (here.model_store / "torn-1.0.mar").write_bytes(b"PK no zip")
    assert main(["register", "torn-1.0.mar"]) == 1
    assert "torn-1.0.mar" in capsys.readouterr().err
    assert main(["register", "ecco-1.0.mar"]) == 2
    assert "did you mean 'echo-1.0.mar'" in capsys.readouterr().err


def test_the_printed_token_is_accepted(here: Project, state: RunState, capsys: pytest.CaptureFixture[str]) -> None:
    transport = Transport()
    for role, url, path in (
        ("inference", state.inference, ("ping",)),
        ("management", state.management, ("models",)),
        ("api", state.management, ("token",)),
    ):
        assert main(["token", role]) == 0
        printed = capsys.readouterr().out
        assert printed.count("\n") == 1
        request = HttpRequest("GET", url, path, {"type": "management"})
        assert transport.send(request, token=printed.strip(), deadline_s=10).status == 200
    transport.close()
