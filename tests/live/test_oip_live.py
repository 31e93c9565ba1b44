"""Our default archive called by the standard client of KServe v2, over HTTP and gRPC, and as KServe v1."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2 as messages
from tritonclient.utils import InferenceServerException

from marsmith.client import Client, tokens
from marsmith.client.key_file import Role
from marsmith.inputs import read_input
from marsmith.run_state import RunState
from support.host_server import SERVERS, serving
from support.live_server import make_project
from support.long_tests import mostly_long
from support.projects import REPOSITORY

pytestmark = pytest.mark.tensors

MODEL = "efficientnet_lite0"
TORCHSERVE = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService"
Labels = dict[str, float]


@dataclass(frozen=True)
class Caller:
    """Calls one server the way that standard clients do."""

    state: RunState
    photo: bytes
    server: str

    @property
    def headers(self) -> dict[str, str]:
        # A new mapping each time: tritonclient writes into it.
        return {"Authorization": f"Bearer {tokens.token(self.state, 'inference')}"}

    def http(self) -> triton_http.InferenceServerClient:
        return triton_http.InferenceServerClient(self.state.inference.removeprefix("http://"), network_timeout=60.0)

    def infer(self, array: Any, datatype: str, *, binary: bool, version: str = "") -> dict[str, Labels]:
        """Return the labels of every output."""
        tensor = triton_http.InferInput("image", list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        result = self.http().infer(MODEL, [tensor], model_version=version, headers=self.headers, request_id="mine")
        response = result.get_response()
        assert (response["id"], response["model_name"], response["model_version"]) == ("mine", MODEL, "1.0")
        return {output["name"]: result.as_numpy(output["name"])[0] for output in response["outputs"]}

    def own_grpc(self, name: str, request: Any, response: Any) -> Any:
        """Call the service under the name that TorchServe gives it."""
        with grpc.insecure_channel(self.state.grpc_inference) as channel:
            call = channel.unary_unary(
                f"{TORCHSERVE}/{name}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
            return call(request, metadata=[("authorization", self.headers["Authorization"])], timeout=60)

    def own_infer(self, **contents: Any) -> messages.ModelInferResponse:
        request = messages.ModelInferRequest(model_name=MODEL, id="mine")
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.extend(contents.get("typed", []))
        request.raw_input_contents.extend(contents.get("raw", []))
        answer: messages.ModelInferResponse = self.own_grpc("ModelInfer", request, messages.ModelInferResponse)
        return answer


@pytest.fixture(scope="module", params=mostly_long("host", SERVERS, ["TorchServe"]))
def caller(
    request: pytest.FixtureRequest, default_archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Caller]:
    photo = read_input("package:skimage/data/chelsea.png", REPOSITORY).body
    project = make_project(
        tmp_path_factory.mktemp("oip") / "project",
        {default_archive.name: default_archive},
        ts_open_inference_protocol="true",
    )
    with serving(request.param, project) as state:
        yield Caller(state, photo, request.param)


@pytest.fixture(scope="module")
def expected(caller: Caller) -> Labels:
    """What the archive answers to the same photo, sent plainly."""
    with Client(caller.state.inference, None, key_file=caller.state.key_file) as client:
        labels: Labels = client.predict(MODEL, caller.photo).json()
    return labels


def is_same(labels: Labels, expected: Labels) -> bool:
    return labels == pytest.approx(expected, abs=1e-5)


def by_http(array: Callable[[Caller], Any], datatype: str, **how: Any) -> Callable[[Caller, Labels], bool]:
    def call(caller: Caller, expected: Labels) -> bool:
        answers = caller.infer(array(caller), datatype, **how)
        return bool(answers) and all(is_same(labels, expected) for labels in answers.values())

    return call


def get(api: str, path: str) -> Callable[[Caller, Labels], bool]:
    def call(caller: Caller, expected: Labels) -> bool:
        role: Role = "management" if api == "management" else "inference"
        headers = {"Authorization": f"Bearer {tokens.token(caller.state, role)}"}
        reply = requests.get(f"{getattr(caller.state, api)}{path}", headers=headers, timeout=30)
        return reply.status_code == 200 and reply.json()["ready"] is True

    return call


def kserve_v1(caller: Caller, expected: Labels) -> bool:
    text = base64.b64encode(caller.photo).decode()
    body = {"instances": [{"b64": text}, {"data": text}, {"image": {"b64": text}}]}
    url = f"{caller.state.inference}/v1/models/{MODEL}:predict"
    predictions = requests.post(url, headers=caller.headers, json=body, timeout=60).json()["predictions"]
    return len(predictions) == 3 and all(is_same(labels, expected) for labels in predictions)


def standard_grpc(caller: Caller, what: str) -> Any:
    with triton_grpc.InferenceServerClient(caller.state.grpc_inference) as client:
        headers = {"authorization": caller.headers["Authorization"]}
        if what == "live":
            return client.is_server_live(headers=headers)
        tensor = triton_grpc.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([caller.photo], dtype=object))
        return client.infer(MODEL, [tensor], headers=headers)


def own_infer_typed(caller: Caller, expected: Labels) -> bool:
    import json

    answer = caller.own_infer(typed=[caller.photo])
    (output,) = answer.outputs
    assert (answer.id, output.name, output.datatype) == ("mine", "image", "BYTES")
    return is_same(json.loads(output.contents.bytes_contents[0]), expected)


CALLS: dict[str, Callable[[Caller, Labels], Any]] = {
    "HTTP: server live": lambda caller, _: caller.http().is_server_live(headers=caller.headers),
    "HTTP: server ready": lambda caller, _: caller.http().is_server_ready(headers=caller.headers),
    "HTTP: server metadata": lambda caller, _: caller.http().get_server_metadata(headers=caller.headers)["name"],
    "HTTP: model ready": lambda caller, _: caller.http().is_model_ready(MODEL, headers=caller.headers),
    "HTTP: model metadata": lambda caller, _: caller.http().get_model_metadata(MODEL, headers=caller.headers),
    "HTTP: infer, BYTES as binary data": by_http(lambda c: np.array([c.photo], object), "BYTES", binary=True),
    "HTTP: infer, BYTES as base64 in JSON": by_http(
        lambda c: np.array([base64.b64encode(c.photo)], object), "BYTES", binary=False
    ),
    "HTTP: infer, UINT8 as binary data": by_http(lambda c: np.frombuffer(c.photo, np.uint8), "UINT8", binary=True),
    "HTTP: infer, UINT8 in JSON": by_http(lambda c: np.frombuffer(c.photo, np.uint8), "UINT8", binary=False),
    "HTTP: infer, several elements of BYTES": by_http(lambda c: np.array([c.photo] * 3, object), "BYTES", binary=True),
    "HTTP: infer of a named version": by_http(
        lambda c: np.array([c.photo], object), "BYTES", binary=True, version="1.0"
    ),
    "HTTP: KServe v1 predict": kserve_v1,
    "HTTP: KServe v1 model ready, management API": get("management", f"/v1/models/{MODEL}"),
    "HTTP: KServe v1 model ready, inference API": get("inference", f"/v1/models/{MODEL}"),
    "gRPC: server live, standard client": lambda caller, _: standard_grpc(caller, "live"),
    "gRPC: infer, standard client": lambda caller, _: standard_grpc(caller, "infer"),
    "gRPC: server live, TorchServe's service name": lambda caller, _: (
        caller.own_grpc("ServerLive", messages.ServerLiveRequest(), messages.ServerLiveResponse).live
    ),
    "gRPC: model ready, TorchServe's service name": lambda caller, _: (
        caller.own_grpc("ModelReady", messages.ModelReadyRequest(name=MODEL), messages.ModelReadyResponse).ready
    ),
    "gRPC: model metadata, TorchServe's service name": lambda caller, _: list(
        caller.own_grpc(
            "ModelMetadata", messages.ModelMetadataRequest(name=MODEL), messages.ModelMetadataResponse
        ).versions
    ),
    "gRPC: infer, TorchServe's service name, typed contents": own_infer_typed,
}


def documented() -> dict[str, dict[str, bool]]:
    """Return which calls work, by call and server."""
    text = (REPOSITORY / "docs" / "reference" / "kserve-and-oip.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+: .+?) \| (yes|no) \| (yes|no) \|$", text, re.MULTILINE)
    return {call: dict(zip(SERVERS, (each == "yes" for each in works), strict=True)) for call, *works in rows}


def test_the_table_in_the_docs_names_every_call_that_is_tried() -> None:
    assert list(documented()) == list(CALLS)


@pytest.mark.parametrize("call", list(CALLS))
def test_a_call_of_the_standard_protocols_works_or_not_as_documented(
    call: str, caller: Caller, expected: Labels
) -> None:
    try:
        works = bool(CALLS[call](caller, expected))
    except (InferenceServerException, grpc.RpcError, KeyError):
        works = False
    assert works is documented()[call][caller.server]


def test_several_elements_have_an_output_each(caller: Caller) -> None:
    assert list(caller.infer(np.array([caller.photo] * 2, object), "BYTES", binary=True)) == ["image-0", "image-1"]


def test_what_the_handler_refuses_reaches_the_standard_client_with_its_status(caller: Caller) -> None:
    with pytest.raises(InferenceServerException, match="none of JPEG, PNG") as caught:
        caller.infer(np.array([b"no image"], object), "BYTES", binary=True)
    assert caught.value.status() == "415"
