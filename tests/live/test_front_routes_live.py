"""Two versions of a handler that we ship, behind a real Envoy, in every protocol."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from PIL import Image
from tritonclient.grpc import service_pb2 as oip

from marsmith.client import Client, tokens
from marsmith.client.grpc_messages import message_class, predictions_request
from marsmith.run_state import RunState
from marsmith.server.front.traffic import Canary, Shadow, Sticky
from support.envoy_front import Place, front_of
from support.light_versions import MODEL_INFER, PREDICTIONS
from support.live_server import make_project, running, until
from support.raw_calls import call
from support.tampered_archives import shipped_archive

pytestmark = pytest.mark.tensors

CANARY = Canary("tiny", "2.0", 10_000, Sticky("header", "x-user-id"), per_try_timeout_s=30)


class FailsOnBlack(torch.nn.Module):
    """The new version: surer than the old one, and with a fault that its examples do not show."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert bool((images.amax(dim=[1, 2, 3]) > 0).all()), "division by zero"
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 8.0, dim=1)


def picture(*colour: int) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


RED, BLACK = picture(60, 0, 0), picture(0, 0, 0)


@dataclass(frozen=True)
class Server:
    place: Place
    state: RunState

    @property
    def token(self) -> str:
        return tokens.token(self.state, "inference")

    def rest(self, image: bytes, user: str = "", path: str = "/predictions/tiny") -> tuple[int, Any]:
        return self._post(path, image, user, "application/octet-stream")

    def v1(self, image: bytes, user: str = "") -> tuple[int, Any]:
        status, body = self._json("/v1/models/tiny:predict", {"instances": [{"b64": text(image)}]}, user)
        return status, body["predictions"][0] if status == 200 else body

    def v2(self, image: bytes, user: str = "") -> tuple[int, Any]:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text(image)]}
        status, body = self._json("/v2/models/tiny/infer", {"inputs": [tensor]}, user)
        return status, body["outputs"][0]["data"][0] if status == 200 else body

    def grpc(self, image: bytes, user: str = "", version: str | None = None) -> tuple[int, Any]:
        request = predictions_request("tiny", version, image)
        with grpc.insecure_channel(self.place.grpc) as channel:
            unary = channel.unary_unary(PREDICTIONS)
            try:
                raw = unary(request.SerializeToString(), metadata=self._metadata(user), timeout=120)
            except grpc.RpcError as error:
                return 500, error.code().name
        body = json.loads(message_class("PredictionResponse").FromString(raw).prediction)
        return body.get("code", 200), body

    def infer(self, image: bytes, user: str = "") -> tuple[int, Any]:
        request = oip.ModelInferRequest(model_name="tiny", id="mine")
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(image)
        with grpc.insecure_channel(self.place.grpc) as channel:
            raw = channel.unary_unary(MODEL_INFER)(
                request.SerializeToString(), metadata=self._metadata(user), timeout=120
            )
        answer = oip.ModelInferResponse.FromString(raw)
        assert answer.id == "mine"
        if not answer.outputs:
            return 500, "no outputs"
        return 200, json.loads(answer.outputs[0].contents.bytes_contents[0])

    def _json(self, path: str, body: Any, user: str) -> tuple[int, Any]:
        return self._post(path, json.dumps(body).encode(), user, "application/json")

    def _post(self, path: str, body: bytes, user: str, kind: str) -> tuple[int, Any]:
        headers = {"Content-Type": kind, **({"x-user-id": user} if user else {})}
        answer = call(self.place.url, "POST", path, self.token, body=body, headers=headers)
        return answer.status, json.loads(answer.body)

    def _metadata(self, user: str) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}"), *([("x-user-id", user)] if user else [])]


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def version_of(answer: tuple[int, Any]) -> str:
    """Tell who has answered: the new version is surer."""
    status, body = answer
    assert status == 200, body
    return "2.0" if body["red"] > 0.9 else "1.0"


WAYS: dict[str, Callable[[Server, bytes, str], tuple[int, Any]]] = {
    "REST": Server.rest,
    "KServe v1": Server.v1,
    "KServe v2": Server.v2,
    "gRPC": Server.grpc,
    "ModelInfer": Server.infer,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("archives")
    old = shipped_archive(folder / "tiny-1.0.mar")
    new = shipped_archive(folder / "tiny-2.0.mar", version="2.0", module=FailsOnBlack())
    project = make_project(
        tmp_path_factory.mktemp("routes") / "project",
        {old.name: old, new.name: new},
        ts_open_inference_protocol="true",
    )
    with running(project) as state:
        with Client.of(state) as client:
            client.set_default("tiny", "1.0")
        yield Server(front_of(project, state), state)


@pytest.mark.parametrize("way", WAYS)
def test_a_share_goes_to_the_new_version_and_stays_there(server: Server, way: str) -> None:
    server.place.change(replace(CANARY, share=5_000))
    ask = WAYS[way]
    users = [f"user-{number}" for number in range(12)]
    first = [version_of(ask(server, RED, user)) for user in users]
    assert set(first) == {"1.0", "2.0"}
    assert [version_of(ask(server, RED, user)) for user in users] == first
    # The same users in every protocol.
    assert [version_of(server.rest(RED, user)) for user in users] == first
    server.place.change()
    assert {version_of(ask(server, RED, user)) for user in users} == {"1.0"}


def test_a_version_that_is_named_is_the_one_that_answers(server: Server) -> None:
    server.place.change(CANARY)
    assert version_of(server.rest(RED, path="/predictions/tiny/1.0")) == "1.0"
    assert version_of(server.grpc(RED, version="1.0")) == "1.0"
    server.place.change(replace(CANARY, share=0))
    assert version_of(server.rest(RED, path="/predictions/tiny/2.0")) == "2.0"
    assert version_of(server.grpc(RED, version="2.0")) == "2.0"


@pytest.mark.parametrize("way", WAYS)
def test_a_canary_that_always_fails_is_seen_by_no_user_and_by_the_log(server: Server, way: str) -> None:
    server.place.change(replace(CANARY, share=2_500))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda user: WAYS[way](server, BLACK, f"u{user}"), range(40)))
    assert {status for status, _ in found} == {200}
    on_trial = [each for each in server.place.answers(40) if each.version == "2.0"]
    assert on_trial
    assert all(each.attempts == 2 and each.failed_on_canary_alone for each in on_trial)


def test_without_the_front_s_help_the_same_requests_fail(server: Server) -> None:
    server.place.change(replace(CANARY, shielded=False))
    assert server.rest(BLACK)[0] == 500
    # gRPC calls it OK.
    assert server.grpc(BLACK)[0] == 500
    assert server.infer(BLACK) == (500, "no outputs")
    assert [each.reply_failed for each in server.place.answers(3)] == [True] * 3


def test_what_is_no_picture_is_the_clients_fault(server: Server) -> None:
    server.place.change(CANARY)
    assert server.rest(b"no picture")[0] == 415
    assert server.grpc(b"no picture")[0] == 415
    # ModelInfer loses the status: it is repeated, and as the default version refuses it too, no evidence.
    assert server.infer(b"no picture")[0] == 500
    rest, call_, infer = server.place.answers(3)
    assert [each.attempts for each in (rest, call_, infer)] == [1, 1, 2]
    assert rest.was_refused
    assert call_.was_refused
    assert infer.was_repeated
    assert infer.reply_failed
    assert not any(each.failed_on_canary_alone for each in (rest, call_, infer))


@pytest.mark.parametrize("way", WAYS)
def test_a_version_that_is_not_there_is_seen_by_no_user(server: Server, way: str) -> None:
    server.place.change(replace(CANARY, version="9.0"))
    assert {version_of(WAYS[way](server, RED, "")) for _ in range(5)} == {"1.0"}
    assert all(each.failed_on_canary_alone for each in server.place.answers(5))


def test_both_sides_log_exactly_the_copied_requests_under_one_key(server: Server) -> None:
    server.place.change(Shadow("tiny", "2.0", 5_000))
    assert {version_of(ask(server, RED, "")) for ask in WAYS.values() for _ in range(12)} == {"1.0"}
    copied = {each.request_id for each in server.place.answers(60) if each.copied_to}
    assert 10 < len(copied) < 50
    log = server.state.folder / "logs" / "predictions" / "tiny.jsonl"
    until(lambda: len(lines(log)) >= 2 * len(copied), 60)
    logged = Counter((line["key"], line["version"], line["shadow"] or line["key_from"] == "id") for line in lines(log))
    assert {key for key, _, _ in logged} == copied
    assert set(logged.values()) == {1}
    assert {version for _, version, _ in logged} == {"1.0", "2.0"}


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_version_that_is_unregistered_under_traffic_is_missed_by_nobody(server: Server) -> None:
    """The last one here: the version is gone afterwards."""
    server.place.change(CANARY)
    done: list[bool] = []

    def load(ask: Callable[[Server, bytes, str], tuple[int, Any]]) -> list[int]:
        found = []
        while not done:
            found.append(ask(server, RED, "")[0])
        return found

    with ThreadPoolExecutor(3) as pool:
        loops = [pool.submit(load, ask) for ask in (Server.rest, Server.grpc, Server.v2)]
        try:
            until(lambda: len(server.place.answers(20)) >= 20, 60)
            with Client.of(server.state) as client:
                client.unregister("tiny", "2.0")
            server.place.changed_s = float("-inf")
            until(lambda: any(each.failed_on_canary_alone for each in server.place.answers(20)), 60)
        finally:
            done.append(True)
        statuses = [status for loop in loops for status in loop.result()]
    assert set(statuses) == {200}
