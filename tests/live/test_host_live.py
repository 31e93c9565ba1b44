"""A host beside TorchServe: the same paths and errors, batches, and what the verbs make of it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton

from marsmith.cli import main
from marsmith.client import Client, tokens
from marsmith.client.grpc_messages import predictions_request
from marsmith.config.certificate import make_pair, write_pair
from marsmith.errors import (
    AuthorizationError,
    ConnectionFailedError,
    NotFoundError,
    OverloadedError,
    RequestRejectedError,
)
from support.host_server import RunningHost, light_archive, running_host
from support.live_server import SharedServer, until
from support.raw_calls import INFERENCE, Answer, call

BATCH, QUEUE, WORKERS = 4, 20, 2


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    folder = tmp_path_factory.mktemp("host")
    archives = [light_archive(folder / "a.mar"), light_archive(folder / "b.mar", "2.0", name="other")]
    with running_host(folder / "run", archives) as running:
        yield running


def ask(host: RunningHost, body: str = "", *, path: str = "/predictions/light", **headers: str) -> Answer:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return call(host.state.url, "POST", path, host.key(), body=body.encode(), headers=sent)


# The same as TorchServe -----------------------------------------------------------------------------------------------

SAME = [
    ("POST", "/predictions/nobody", True),
    ("POST", "/predictions/echo/7", True),
    ("POST", "/predictions", True),
    ("POST", "/nowhere", True),
    ("GET", "/ping", True),
    ("POST", "/predictions/echo", False),
    ("GET", "/ping", False),
    ("GET", "/v1/models/echo", False),
]


@pytest.fixture(scope="module")
def echo_host(shared_server: SharedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHost]:
    with running_host(tmp_path_factory.mktemp("echo"), [shared_server.project.model_store / "echo-1.0.mar"]) as running:
        yield running


@pytest.mark.parametrize(("method", "path", "with_token"), SAME)
def test_errors_are_torchserves_byte_for_byte(
    shared_server: SharedServer, echo_host: RunningHost, method: str, path: str, with_token: bool
) -> None:
    token = tokens.token(shared_server.state, "inference") if with_token else None
    # TorchServe itself, without the front's headers.
    backend = shared_server.state.backend
    assert backend is not None
    theirs = call(backend.inference, method, path, token, body=b"x" if method == "POST" else None)
    key = echo_host.key() if with_token else None
    ours = call(echo_host.state.url, method, path, key, body=b"x" if method == "POST" else None)
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    assert theirs.headers.keys() - {"x-request-id"} <= ours.headers.keys() | {"connection"}


@pytest.mark.parametrize(("model", "version"), [("nobody", None), ("echo", "7"), ("echo", None)])
def test_errors_over_grpc_are_torchserves(
    shared_server: SharedServer, echo_host: RunningHost, model: str, version: str | None
) -> None:
    def asked(address: str, key: str | None) -> tuple[Any, str]:
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        with grpc.insecure_channel(address) as channel:
            predict = channel.unary_unary(f"/{INFERENCE}/Predictions")
            try:
                message = predictions_request(model, version, b"x").SerializeToString()
                return "OK", predict(message, metadata=metadata, timeout=30)
            except grpc.RpcError as error:
                return error.code(), error.details().removesuffix(".()")

    token = tokens.token(shared_server.state, "inference")
    assert asked(str(echo_host.state.grpc), echo_host.key()) == asked(shared_server.state.grpc_inference, token)
    assert asked(str(echo_host.state.grpc), None) == asked(shared_server.state.grpc_inference, None)


# Batches and the queue ------------------------------------------------------------------------------------------------


class Held:
    """Keeps all workers at work until the end of the block."""

    def __init__(self, host: RunningHost, folder: Path, pool: ThreadPoolExecutor) -> None:
        self._begun, self._until = folder / "begun", folder / "until"
        order = f"wait {self._begun} {self._until}"
        self.jobs: list[Future[Answer]] = []
        for count in range(1, WORKERS + 1):
            self.jobs.append(pool.submit(ask, host, order))
            until(lambda count=count: self._begun.exists() and len(self.pids()) == count)  # type: ignore[misc]

    def pids(self) -> list[int]:
        return [int(line) for line in self._begun.read_text().split()]

    def release(self) -> None:
        self._until.touch()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


def waiting(host: RunningHost) -> int:
    answer = call(host.state.url, "GET", "/models/light", host.key())
    return int(json.loads(answer.body)[0]["jobQueueStatus"]["pendingRequests"])


def test_batches_form_only_while_all_workers_are_busy(
    host: RunningHost, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    assert json.loads(ask(host).body)["batch"] == 1
    held = Held(host, tmp_path, pool)
    assert len(set(held.pids())) == WORKERS
    jobs = [pool.submit(ask, host, "x") for _ in range(WORKERS * BATCH - 1)]
    until(lambda: waiting(host) == WORKERS * BATCH - 1)
    held.release()
    answers = [json.loads(job.result().body) for job in jobs]
    assert max(answer["batch"] for answer in answers) == BATCH
    assert all(job.result().status == 200 for job in held.jobs)


def test_a_full_queue_is_refused_with_a_time_to_come_again(
    host: RunningHost, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    held = Held(host, tmp_path, pool)
    # One full batch waits in each worker, the rest in the queue.
    jobs = [pool.submit(ask, host, "x") for _ in range(WORKERS * BATCH)]
    until(lambda: waiting(host) == 0)
    jobs += [pool.submit(ask, host, "x") for _ in range(QUEUE)]
    until(lambda: waiting(host) == QUEUE)
    refused = ask(host, "one too many")
    assert (refused.status, refused.kind) == (429, "TooManyRequestsException")
    assert int(refused.headers["retry-after"]) >= 1
    with Client(host.state.url, None, key_file=host.state.key_file) as client, pytest.raises(OverloadedError):
        client.predict("light", b"x", deadline_s=0.5)
    held.release()
    assert {job.result().status for job in jobs} == {200}


def test_a_request_whose_deadline_passes_is_refused_before_work_is_spent_on_it(
    host: RunningHost, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    late = ask(host, "x", X_Deadline_Ms="1000")
    assert (late.status, late.kind, late.headers["retry-after"]) == (503, "ServiceUnavailableException", "1")
    held = Held(host, tmp_path, pool)
    mark = tmp_path / "worked"
    in_queue = pool.submit(ask, host, f"die once {mark}", X_Deadline_Ms=str(round(time.time() * 1000) + 300))
    answer = in_queue.result()
    assert answer.status == 503
    assert "deadline" in json.loads(answer.body)["message"]
    held.release()
    assert all(job.result().status == 200 for job in held.jobs)
    assert not mark.exists()


def test_nobody_works_for_a_client_that_has_gone(host: RunningHost, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    held = Held(host, tmp_path, pool)
    mark = tmp_path / "worked"
    body = f"die once {mark}".encode()
    head = f"POST /predictions/light HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {host.key()}\r\n"
    address = host.state.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as gone:
        gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: waiting(host) == 1)
    until(lambda: waiting(host) == 0)
    held.release()
    assert all(job.result().status == 200 for job in held.jobs)
    assert not mark.exists()


# Protocols ------------------------------------------------------------------------------------------------------------


def test_a_version_is_named_in_each_protocol(host: RunningHost) -> None:
    paths = ["/predictions/other", "/predictions/other/2.0", "/v1/models/other:predict", "/v2/models/other/infer"]
    paths += ["/v1/models/other/versions/2.0:predict", "/v2/models/other/versions/2.0/infer"]
    assert [json.loads(ask(host, "x", path=path).body)["version"] for path in paths] == ["2.0"] * len(paths)
    assert ask(host, "x", path="/invocations").status == 404


def test_a_status_of_the_handler_is_kept_over_rest_and_in_the_body_over_grpc(host: RunningHost) -> None:
    assert ask(host, "refuse").status == 422
    with Client(host.state.url, None, key_file=host.state.key_file, grpc=host.state.grpc) as client:
        assert client.predict_grpc("light", b"refuse").json()["order"] == "refuse"
        assert next(iter(client.stream_grpc("light", b"x"))).startswith(b'{"order": "x"')
        with pytest.raises(NotFoundError, match="nobody"):
            client.predict_grpc("nobody", b"x")


def test_the_standard_client_over_grpc_learns_of_models(host: RunningHost) -> None:
    headers = {"authorization": f"Bearer {host.key()}"}
    with triton.InferenceServerClient(host.state.grpc) as client:
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready("light", headers=headers)
        assert list(client.get_model_metadata("other", headers=headers).versions) == ["2.0"]


def test_metrics_have_torchserves_names_and_models_can_only_be_read(host: RunningHost) -> None:
    assert ask(host, "x").status == 200
    text = call(host.state.url, "GET", "/metrics").body.decode()
    assert 'ts_inference_requests_total{model_name="light",model_version="1.0",' in text
    assert 'Requests2XX{Level="Host",' in text
    models = json.loads(call(host.state.url, "GET", "/models", host.key()).body)["models"]
    assert models == [{"modelName": "light", "modelUrl": "a.mar"}, {"modelName": "other", "modelUrl": "b.mar"}]
    assert call(host.state.url, "DELETE", "/models/light", host.key()).status == 405
    assert call(host.state.url, "GET", "/ready").status == 200


# The verbs ------------------------------------------------------------------------------------------------------------


def test_verbs_reach_a_host_by_its_url_and_key_file(
    host: RunningHost, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("hello")
    there = ["--url", host.state.url, "--key-file", str(host.state.key_file)]
    assert main(["predict", "light", "in.txt", *there]) == 0
    assert json.loads(capsys.readouterr().out)["order"] == "hello"
    assert main(["status", *there, "--json"]) == 0
    light, other = json.loads(capsys.readouterr().out)
    assert [each["status"] for each in light["workers"]] == ["READY"] * WORKERS
    assert {each["pid"] for each in [*light["workers"], *other["workers"]]} == set(host.workers())
    there[1] += "/predictions/light"
    assert (
        main(["bench", "light", "--input", "in.txt", "--clients", "4", "--seconds", "0.5", "--warm-up", "0", *there])
        == 0
    )
    assert "answers/s" in capsys.readouterr().out


def test_without_its_key_file_nobody_gets_in(host: RunningHost) -> None:
    with Client(host.state.url, None) as client, pytest.raises(AuthorizationError):
        client.predict("light", b"x")
    assert host.state.key_file
    assert host.state.key_file.stat().st_mode & 0o777 == 0o600
    with triton.InferenceServerClient(host.state.grpc) as client, pytest.raises(Exception, match="Token"):
        client.is_server_live()


def test_a_body_above_the_limit_is_refused_unread(host: RunningHost) -> None:
    answer = ask(host, "x", Content_Length=str(1 << 30))
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_many_clients_at_once_are_all_answered(host: RunningHost) -> None:
    from marsmith.client import AsyncClient

    async def run() -> list[Any]:
        async with AsyncClient(host.state.url, None, key_file=host.state.key_file, grpc=host.state.grpc) as client:
            bodies = [str(number).encode() for number in range(300)]
            replies = [each async for each in client.predict_many("light", bodies, concurrency=32)]
            return [(place, reply.json()["order"]) for place, reply in replies if not isinstance(reply, Exception)]

    assert sorted(asyncio.run(run())) == [(number, str(number)) for number in range(300)]


def test_a_refusal_of_the_handler_is_an_error_of_the_client(host: RunningHost) -> None:
    with (
        Client(host.state.url, None, key_file=host.state.key_file) as client,
        pytest.raises(RequestRejectedError) as caught,
    ):
        client.predict("light", b"refuse")
    assert caught.value.status == 422


def test_tls_covers_rest_and_grpc(tmp_path: Path) -> None:
    key, certificate = write_pair(tmp_path / "tls", make_pair())
    archive = light_archive(tmp_path / "light.mar", minWorkers=1)
    flags = ("--certificate-file", str(certificate), "--private-key-file", str(key))
    with running_host(tmp_path / "run", [archive], *flags) as host:
        assert host.state.url.startswith("https://")
        url, keys = host.state.url, host.state.key_file
        with Client(url, None, key_file=keys, grpc=host.state.grpc, ca_file=certificate) as client:
            assert client.predict("light", b"x").json()["order"] == "x"
            assert client.predict_grpc("light", b"x").json()["order"] == "x"
        with Client(url, None, key_file=keys) as client, pytest.raises(ConnectionFailedError):
            client.predict("light", b"x", deadline_s=2)
