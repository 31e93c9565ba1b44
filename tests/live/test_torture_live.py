"""The default archive under a storm of bad requests, on a real TorchServe: nothing that is good gets lost."""

from __future__ import annotations

import base64
import functools
import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image
from skimage import data

from marsmith.client import Client
from marsmith.client.grpc import InferenceChannel
from marsmith.client.http import HttpReply
from marsmith.errors import RequestRejectedError
from marsmith.loadtest.tune.setup import Placement, Setup
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.run_state import RunState
from support.image_corpus import encode, good_images, large_payload, malformed_payloads, media_type
from support.live_server import make_project, running
from support.long_tests import long

pytestmark = pytest.mark.tensors

MODEL = "efficientnet_lite0"
# One worker with batches of eight: what shares a batch is what is tested.
SETUP = Setup(Placement(0, 1, 2), 8, 1)
PREDICT = f"/predictions/{MODEL}"
V1 = f"/v1/models/{MODEL}:predict"
V2 = f"/v2/models/{MODEL}/infer"
JSON = "application/json"
CLIENTS = 16
# Batches of different sizes take different kernels; the last digits differ.
TOLERANCE = 1e-3
# After a first round of the same requests the worker has met every decoder and every batch size.
GROWTH_BYTES = 64 * 1024 * 1024
BATCHES = "marsmith_decode_seconds_count"
ERROR_KEYS = {"code", "type", "message", "request_id"}
PHOTOS = ("coffee", "chelsea", "rocket", "astronaut", "cat", "immunohistochemistry")


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP: ``headers`` with names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Case:
    """One request; ``good`` names the photo that it shows, None where it is malformed."""

    name: str
    body: bytes
    content_type: str = "application/octet-stream"
    good: str | None = None
    path: str = PREDICT
    headers: Mapping[str, str] = field(default_factory=dict)


def ask(address: str, case: Case) -> Answer:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        # Who refuses a large body does not read it to its end.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", case.path, case.body, {"Content-Type": case.content_type, **case.headers})
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    finally:
        connection.close()


def ask_all(address: str, cases: Sequence[Case]) -> list[Answer]:
    """Send all requests from concurrent clients; the replies come in the order of the requests."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(functools.partial(ask, address), cases))


def ask_at_once(address: str, cases: Sequence[Case]) -> list[Answer]:
    """Send all requests in the same moment, so that they share a batch."""
    gate = threading.Barrier(len(cases))

    def at_the_gate(case: Case) -> Answer:
        gate.wait(30)
        return ask(address, case)

    with ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(at_the_gate, cases))


@functools.cache
def photos() -> dict[str, bytes]:
    """Photos that the model tells apart, so that an answer that reached the wrong sender shows."""
    images = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOS}
    return {name: encode(image.resize((320, 240)), "jpeg", quality=90) for name, image in images.items()}


def good_cases() -> list[Case]:
    own = [Case(name, body, "image/jpeg", good=name) for name, body in photos().items()]
    kinds = [Case(name, body, media_type(name), good=name) for name, body in good_images().items()]
    return own * 8 + kinds


def bad_cases() -> list[Case]:
    return [Case(*payload) for payload in malformed_payloads()]


@pytest.fixture(scope="module")
def server(default_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunState]:
    together = tmp_path_factory.mktemp("together")
    archive = VariantMaker(default_archive, together).write(SETUP, together / "one.mar")
    root = tmp_path_factory.mktemp("torture") / "project"
    project = make_project(root, {archive.name: archive}, disable_token_authorization="true")
    with running(project) as state:
        yield state


@pytest.fixture(scope="module")
def alone(server: RunState) -> dict[str, dict[str, float]]:
    """The answer that each good request gets when it is alone on the server."""
    answers = {}
    for case in {case.name: case for case in good_cases()}.values():
        answer = ask(server.inference, case)
        assert answer.status == 200, (case.name, answer.body)
        answers[case.name] = answer.json()
    return answers


def worker(server: RunState) -> psutil.Process:
    """The process of the model's only worker, which must be ready."""
    with Client(server.inference, server.management) as client:
        (version,) = client.describe(MODEL)
    (only,) = version.workers
    assert only.status == "READY"
    return psutil.Process(only.pid)


@pytest.fixture
def same_worker(server: RunState) -> Iterator[psutil.Process]:
    """The worker, of which the test must leave the very same process."""
    before = worker(server)
    yield before
    after = worker(server)
    assert (after.pid, after.create_time()) == (before.pid, before.create_time())


def assert_same_answer(answer: Any, expected: Mapping[str, float], name: str) -> None:
    assert next(iter(answer)) == next(iter(expected)), (name, answer, expected)
    assert all(abs(answer.get(label, 0.0) - expected[label]) < TOLERANCE for label in list(expected)[:3]), (
        name,
        answer,
        expected,
    )


def assert_refused(body: bytes, status: int | None, request_id: str | None, name: str) -> int:
    """Check that a malformed request got its own error, and return the code in the body."""
    problem = json.loads(body)
    assert problem.keys() == ERROR_KEYS, (name, problem)
    assert 400 <= problem["code"] < 500, (name, problem)
    assert status in (None, problem["code"]), (name, status, problem)
    assert request_id in (None, problem["request_id"]), (name, request_id, problem)
    assert isinstance(problem["type"], str), (name, problem)
    assert problem["message"], (name, problem)
    return int(problem["code"])


def storm(server: RunState, alone: Mapping[str, Mapping[str, float]], *, seed: int) -> Counter[int]:
    """Send good and bad requests from concurrent clients, in a random order; check every reply; count the codes."""
    cases = good_cases() + bad_cases()
    random.Random(seed).shuffle(cases)
    codes: Counter[int] = Counter()
    for case, answer in zip(cases, ask_all(server.inference, cases), strict=True):
        assert answer.headers["content-type"] == "application/json", (case.name, answer)
        if case.good:
            assert answer.status == 200, (case.name, answer)
            assert_same_answer(answer.json(), alone[case.good], case.name)
            codes[200] += 1
        else:
            codes[assert_refused(answer.body, answer.status, answer.headers["x-request-id"], case.name)] += 1
    return codes


def metric(server: RunState, name: str) -> float:
    """The sum over all lines of a metric, from the metrics API."""
    connection = http.client.HTTPConnection(urlsplit(server.metrics).netloc, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


@long("requests")
def test_a_storm_of_malformed_requests_harms_neither_neighbours_nor_worker(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    requests, batches = metric(server, "ts_inference_requests_total"), metric(server, BATCHES)
    storm(server, alone, seed=1)
    warm_bytes = same_worker.memory_info().rss
    codes = storm(server, alone, seed=2)
    grown_bytes = same_worker.memory_info().rss - warm_bytes
    assert sum(codes.values()) - codes[200] >= 300
    assert codes.keys() == {200, 400, 413, 415, 422}
    assert codes[200] >= 100
    assert grown_bytes < GROWTH_BYTES, f"{grown_bytes / 2**20:.0f} MiB more than after the first round"
    # Alone in its batch a bad request has no neighbour to harm: at least two requests a batch, on average.
    requests, batches = metric(server, "ts_inference_requests_total") - requests, metric(server, BATCHES) - batches
    assert requests >= 2 * sum(codes.values())
    assert batches < requests / 2, (batches, requests)


def test_over_grpc_the_body_says_what_is_wrong(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    # gRPC carries no content type; without one, JSON that is none is taken for what it is: no picture.
    cases = bad_cases()[::5] + good_cases()[::5]
    random.Random(3).shuffle(cases)
    channel = InferenceChannel(server.grpc_inference)

    def predict(case: Case) -> HttpReply:
        return channel.predict(MODEL, None, case.body, None, 60)

    with ThreadPoolExecutor(CLIENTS) as pool:
        replies = list(pool.map(predict, cases))
    channel.close()
    for case, reply in zip(cases, replies, strict=True):
        assert reply.status == 200, (case.name, reply)
        if case.good:
            assert_same_answer(reply.json(), alone[case.good], case.name)
        else:
            assert_refused(reply.body, None, None, case.name)


def test_the_client_gives_a_refusal_over_grpc_the_status_that_grpc_drops(server: RunState) -> None:
    with (
        Client(server.inference, None, grpc=server.grpc_inference) as client,
        pytest.raises(RequestRejectedError, match="none of JPEG") as refused,
    ):
        client.predict_grpc(MODEL, b"<html>no picture</html>")
    assert refused.value.status == 415


def test_a_body_of_100_mb_is_refused_by_the_frontend_while_others_are_answered(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    # It answers as soon as it has read the length, with an empty body, because no handler has seen the request.
    host, _, port = urlsplit(server.inference).netloc.partition(":")
    lines = f"POST {PREDICT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(lines.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    large = Case("large", large_payload(), "image/png")
    neighbours = [Case(name, body, "image/jpeg", good=name) for name, body in photos().items()]
    refused, *answers = ask_at_once(server.inference, [large, *neighbours])
    assert refused.status == 413
    for case, answer in zip(neighbours, answers, strict=True):
        assert_same_answer(answer.json(), alone[case.name], case.name)


def base64_json(name: str) -> str:
    return base64.b64encode(photos()[name]).decode()


def pairs() -> list[tuple[str, str]]:
    """Two photos for each of eight requests, no two requests alike."""
    return [(PHOTOS[i % len(PHOTOS)], PHOTOS[(i // len(PHOTOS) + i + 1) % len(PHOTOS)]) for i in range(8)]


def test_kserve_v1_answers_every_instance_of_every_request_of_a_batch(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    bodies = [{"instances": [{"b64": base64_json(a)}, {"image": {"b64": base64_json(b)}}]} for a, b in pairs()]
    bodies.append({"instances": [{"b64": base64_json("coffee")}, {"b64": "AAAA"}]})
    cases = [Case("v1", json.dumps(body).encode(), JSON, path=V1) for body in bodies]
    *answers, bad = ask_at_once(server.inference, cases)
    for (first, second), answer in zip(pairs(), answers, strict=True):
        assert answer.status == 200, answer
        one, two = answer.json()["predictions"]
        assert_same_answer(one, alone[first], first)
        assert_same_answer(two, alone[second], second)
    assert_refused(bad.body, bad.status, bad.headers["x-request-id"], "v1")
    assert "item 2 of 2" in bad.json()["message"]


def test_kserve_v2_answers_every_input_of_every_request_of_a_batch(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    def v2(number: int, *names: str) -> Case:
        tensor = {"shape": [1], "datatype": "BYTES"}
        inputs = [{"name": name, **tensor, "data": [base64_json(name)]} for name in names]
        return Case("v2", json.dumps({"id": f"own-{number}", "inputs": inputs}).encode(), JSON, path=V2)

    answers = ask_at_once(server.inference, [v2(number, *names) for number, names in enumerate(pairs())])
    for number, (names, answer) in enumerate(zip(pairs(), answers, strict=True)):
        assert answer.status == 200, answer
        reply = answer.json()
        assert (reply["id"], reply["model_name"], reply["model_version"]) == (f"own-{number}", MODEL, SETUP.version)
        assert [output["name"] for output in reply["outputs"]] == list(names)
        for name, output in zip(names, reply["outputs"], strict=True):
            (result,) = output["data"]
            assert_same_answer(result, alone[name], name)


def test_several_images_in_one_form_are_all_answered_in_their_order(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    answer = ask(server.inference, form(photos()))
    assert answer.status == 200, answer
    for name, reply in zip(PHOTOS, answer.json(), strict=True):
        assert_same_answer(reply, alone[name], name)
    bad = ask(server.inference, form({"first": photos()["coffee"], "second": b"no picture"}))
    assert_refused(bad.body, bad.status, bad.headers["x-request-id"], "form")
    assert "item 2 of 2" in bad.json()["message"]


def form(files: Mapping[str, bytes]) -> Case:
    head = b'--X9z\r\nContent-Disposition: form-data; name="%b"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\n%b\r\n'
    body = b"".join(head % (name.encode(), value) for name, value in files.items()) + b"--X9z--\r\n"
    return Case("form", body, "multipart/form-data; boundary=X9z")


@pytest.mark.parametrize("key", ["data", "body", "b64"])
def test_base64_in_json_is_answered_like_the_bytes(
    server: RunState, alone: dict[str, dict[str, float]], key: str
) -> None:
    answer = ask(server.inference, Case(key, json.dumps({key: base64_json("chelsea")}).encode(), JSON))
    assert_same_answer(answer.json(), alone["chelsea"], key)


def test_a_passed_deadline_is_a_504_and_its_neighbours_are_answered(
    server: RunState, alone: dict[str, dict[str, float]], same_worker: psutil.Process
) -> None:
    now_ms = int(time.time() * 1000)
    late = Case("late", photos()["coffee"], headers={"x-deadline-ms": str(now_ms - 1000)})
    timely = Case("chelsea", photos()["chelsea"], headers={"x-deadline-ms": str(now_ms + 600_000)})
    answers = ask_at_once(server.inference, [late, timely] * 4)
    for answer in answers[::2]:
        assert answer.status == 504
        assert answer.json().keys() == ERROR_KEYS
        assert answer.json()["type"] == "DeadlineExceeded"
    for answer in answers[1::2]:
        assert answer.status == 200
        assert_same_answer(answer.json(), alone["chelsea"], "chelsea")
