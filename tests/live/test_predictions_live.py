"""The prediction log of a real TorchServe: the same request at two versions has one key, whatever way it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch
from tritonclient.grpc import service_pb2 as messages

from marsmith.client import tokens
from marsmith.predictions import Comparison, LogFollower
from marsmith.predictions.files import log_file
from marsmith.predictions.labels import add_labels
from marsmith.project import Project
from marsmith.run_state import RunState
from support.handler_fixtures import CLASSES, ChannelMeans
from support.live_server import make_project, running, until
from support.packed_classifiers import pack_classifier
from support.pictures import picture
from support.raw_calls import INFERENCE, call, message

pytestmark = pytest.mark.tensors

MODEL, VERSIONS = "colours", ("1.0", "2.0")
MODEL_INFER = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelInfer"
PHOTO = picture(200, 150, 10)


class Reddish(ChannelMeans):
    """The colours again, with more red in them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(images.to(torch.float32).mean(dim=(2, 3)) / 64.0 + torch.tensor([0.2, 0.0, 0.0]), dim=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, RunState]]:
    project = make_project(tmp_path_factory.mktemp("log") / "project", ts_open_inference_protocol="true")
    for version, module in zip(VERSIONS, (ChannelMeans(), Reddish()), strict=True):
        work = project.root / "work" / version
        pack_classifier(work, MODEL, version, module).rename(project.model_store / f"{MODEL}-{version}.mar")
    with running(project) as state:
        # As the front does: it takes the headers that ask for a log from what clients send.
        yield project, state.without_front()


def _rest(state: RunState, version: str, headers: dict[str, str], photo: bytes = PHOTO) -> Any:
    token = tokens.token(state, "inference")
    return call(state.inference, "POST", f"/predictions/{MODEL}/{version}", token, body=photo, headers=headers)


def _grpc(state: RunState, method: str, request: bytes) -> bytes:
    metadata = [("authorization", f"Bearer {tokens.token(state, 'inference')}")]
    with grpc.insecure_channel(state.grpc_inference) as channel:
        answer: bytes = channel.unary_unary(method)(request, metadata=metadata, timeout=60)
        return answer


def _predictions(state: RunState, version: str, **marks: str) -> bytes:
    entries = {"body": PHOTO} | {f"x-{name.replace('_', '-')}": value.encode() for name, value in marks.items()}
    request = message({1: MODEL, 2: version})
    request += b"".join(message({3: message({1: name, 2: value})}) for name, value in entries.items())
    return _grpc(state, f"/{INFERENCE}/Predictions", request)


def _model_infer(state: RunState, version: str, given: str) -> messages.ModelInferResponse:
    request = messages.ModelInferRequest(model_name=MODEL, model_version=version, id=given)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(PHOTO)
    answer: messages.ModelInferResponse = messages.ModelInferResponse.FromString(
        _grpc(state, MODEL_INFER, request.SerializeToString())
    )
    return answer


def _lines(project: Project) -> list[dict[str, Any]]:
    log = log_file(project, MODEL)
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _keys_of_both(project: Project, *keys: str) -> dict[str, list[dict[str, Any]]]:
    """Return the lines of these keys once both versions have written them."""
    until(lambda: all(sum(line["key"] == key for line in _lines(project)) == 2 for key in keys))
    return {key: [line for line in _lines(project) if line["key"] == key] for key in keys}


def test_both_versions_log_a_request_under_one_key_over_rest_and_grpc(server: tuple[Project, RunState]) -> None:
    project, state = server
    for version in VERSIONS:
        assert _rest(state, version, {"x-request-id": "unasked"}).status == 200
        asked = {"x-request-id": "over-rest", "x-marsmith-log": "1", "x-marsmith-shadow": "1"}
        assert set(json.loads(_rest(state, version, asked).body)) == set(CLASSES)
        assert b"red" in _predictions(state, version, request_id="over-grpc", marsmith_log="1")
        answer = _model_infer(state, version, "marsmith-log/over-oip/theirs")
        assert (answer.id, answer.model_version) == ("theirs", version)
    found = _keys_of_both(project, "over-rest", "over-grpc", "over-oip")
    assert len(_lines(project)) == 6, "nothing of the requests that did not ask"
    for first, second in found.values():
        assert (first["version"], second["version"]) == VERSIONS
        assert first["input_sha256"] == second["input_sha256"]
        assert first["reply"] != second["reply"]
        assert min(first["handler_ms"], second["handler_ms"]) > 0
        assert first["request_id"] != second["request_id"], "TorchServe's own"
    assert [line["shadow"] for line in found["over-rest"]] == [True, True]
    assert found["over-grpc"][0]["input_sha256"] == found["over-rest"][0]["input_sha256"], "the marks are no input"


def test_a_label_joins_by_the_id_that_a_reply_without_the_front_carries(server: tuple[Project, RunState]) -> None:
    project, state = server
    ids = [_rest(state, version, {"x-marsmith-log": "1"}).headers["x-request-id"] for version in VERSIONS]
    until(lambda: {line["request_id"] for line in _lines(project)} >= set(ids))
    labels = dict(zip(ids, ("red", "green"), strict=True))
    labelled, joined = add_labels(project, MODEL, LogFollower(log_file(project, MODEL)).each(), labels)
    assert (joined.counted, joined.unknown) == (2, 0)
    assert {version: one.happened for version, one in labelled.accuracies().items()} == {"1.0": 1, "2.0": 0}


def test_the_logged_replies_of_both_versions_are_joined_and_compared(server: tuple[Project, RunState]) -> None:
    project, state = server
    follower = LogFollower(log_file(project, MODEL), from_end=True)
    comparison, count = Comparison(*VERSIONS), 12
    for number in range(count):
        # Green wins by less and less, so that more red in the second version turns the last ones.
        photo = picture(100 + 5 * number, 150, 10)
        for version in VERSIONS:
            assert _rest(state, version, {"x-request-id": f"n{number}", "x-marsmith-log": "1"}, photo).status == 200
    until(lambda: comparison.add(follower.read()) is not None and comparison.report().pairs == count)
    report = comparison.report()
    assert (report.alone, report.failed, report.inputs, report.damaged) == ((0, 0), (0, 0, 0), count, 0)
    assert [flip[:2] for flip in report.flips] == [("green", "red")]
    assert 0 < report.agreement.happened < count
    assert report.latency[0].p50_ms > 0
