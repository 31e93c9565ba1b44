"""The messages of the Open Inference Protocol, beside the stubs of the standard client."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as standard

from marsmith.host.oip_messages import MESSAGES, from_v2, message_class, to_v2


@pytest.mark.parametrize("name", [name for name in MESSAGES if name.endswith(("Request", "Response"))])
def test_the_wire_is_that_of_the_standard_stubs(name: str) -> None:
    ours = {field.name: (field.number, field.is_repeated) for field in message_class(name).DESCRIPTOR.fields}
    theirs = {field.name: (field.number, field.is_repeated) for field in getattr(standard, name).DESCRIPTOR.fields}
    assert ours == theirs


def request(tensor: triton.InferInput) -> standard.ModelInferRequest:
    whole = standard.ModelInferRequest(model_name="m", id="mine")
    whole.inputs.append(tensor._get_tensor())
    content = tensor._get_content()
    if content is not None:
        whole.raw_input_contents.append(content)
    return message_class("ModelInferRequest").FromString(whole.SerializeToString())


def test_raw_contents_stand_behind_the_json() -> None:
    tensor = triton.InferInput("x", [2, 2], "FP32")
    tensor.set_data_from_numpy(np.arange(4, dtype=np.float32).reshape(2, 2))
    body, length = to_v2(request(tensor))
    head = json.loads(body[:length])
    assert head["id"] == "mine"
    assert head["inputs"] == [
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    ]
    assert np.frombuffer(body[length:], np.float32).tolist() == [0, 1, 2, 3]


def test_typed_contents_are_in_the_json_and_bytes_behind_it() -> None:
    whole = standard.ModelInferRequest()
    numbers = whole.inputs.add(name="n", datatype="INT64", shape=[2])
    numbers.contents.int64_contents.extend([5, -6])
    texts = whole.inputs.add(name="t", datatype="BYTES", shape=[2])
    texts.contents.bytes_contents.extend([b"ab", b""])
    body, length = to_v2(whole)
    inputs = json.loads(body[:length])["inputs"]
    assert inputs[0]["data"] == [5, -6]
    assert body[length:] == b"\x02\0\0\0ab\0\0\0\0"


def test_raw_contents_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="1 raw contents for 0 inputs"):
        to_v2(standard.ModelInferRequest(raw_input_contents=[b"x"]))


def test_a_reply_becomes_tensors() -> None:
    outputs = [
        {"name": "a", "datatype": "FP64", "shape": [2], "data": [0.5, 2]},
        {"name": "b", "datatype": "BYTES", "shape": [2], "data": [{"cat": 0.9}, "text"]},
    ]
    body = json.dumps({"id": "7", "outputs": outputs}).encode()
    response = standard.ModelInferResponse.FromString(from_v2(body, "m", "1.0").SerializeToString())
    assert (response.model_name, response.model_version, response.id) == ("m", "1.0", "7")
    assert list(response.outputs[0].contents.fp64_contents) == [0.5, 2.0]
    assert list(response.outputs[1].contents.bytes_contents) == [b'{"cat": 0.9}', b"text"]


@pytest.mark.parametrize("body", [b"[1]", b"no json", b'{"outputs": 1}'])
def test_any_other_reply_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"KServe v2|Expecting value"):
        from_v2(body, "m", "1.0")
