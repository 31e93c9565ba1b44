"""KServe v2 requests with tensors as bytes, written by the standard client and read by our envelope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferInput
from tritonclient.http._utils import _get_inference_request

from marsmith_handler.envelope import Envelope, open_envelope, seal
from marsmith_handler.errors import ItemError
from marsmith_handler.kserve_v2 import V2_DTYPES, V2_JSON_LENGTH


def sent(*inputs: InferInput, request_id: str = "mine") -> tuple[bytes, dict[str, str]]:
    """Return the body and headers with which the standard client sends ``inputs``."""
    body, length = _get_inference_request(inputs, request_id, None, 0, False, False, 0, None, None)
    # The client names the header so; TorchServe passes names on as they were sent.
    return body, {} if length is None else {"Inference-Header-Content-Length": str(length)}


def tensor(name: str, array: Any, datatype: str, *, binary: bool = True) -> InferInput:
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def opened(body: bytes, headers: dict[str, str]) -> Envelope:
    return open_envelope({"body": bytearray(body)}, headers)


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_elements_of_bytes_arrive_as_they_were_sent(elements: list[bytes]) -> None:
    envelope = opened(*sent(tensor("x", np.array(elements, dtype=object), "BYTES")))
    assert [request.as_bytes() for request in envelope.requests] == elements
    assert (envelope.form, envelope.v2_id) == ("v2", "mine")


@pytest.mark.parametrize("datatype", list(V2_DTYPES))
def test_numbers_arrive_as_they_were_sent_and_can_be_written_to(datatype: str) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(V2_DTYPES[datatype])
    (request,) = opened(*sent(tensor("x", array, datatype))).requests
    assert request.body.dtype == array.dtype
    assert request.body.flags.writeable
    np.testing.assert_array_equal(request.body, array)


def test_inputs_in_json_and_as_bytes_can_stand_in_one_request() -> None:
    numbers, text = np.arange(3, dtype=np.int64), np.array([b"abc", b"de"], dtype=object)
    body, headers = sent(tensor("n", numbers, "INT64", binary=False), tensor("t", text, "BYTES"))
    envelope = opened(body, headers)
    assert [request.name for request in envelope.requests] == ["n", "t-0", "t-1"]
    np.testing.assert_array_equal(envelope.requests[0].body, numbers)
    reply = seal(envelope, [1, "a", "b"], model="m", version="1.0", request_id="r")
    assert [output["name"] for output in reply["outputs"]] == ["n", "t-0", "t-1"]


def test_a_row_of_uint8_is_the_bytes_that_it_holds() -> None:
    row, grid = np.frombuffer(b"\x89PNG", np.uint8), np.zeros((2, 2), np.uint8)
    for binary in (True, False):
        (request,) = opened(*sent(tensor("x", row, "UINT8", binary=binary))).requests
        assert request.as_bytes() == b"\x89PNG"
    (request,) = opened(*sent(tensor("x", grid, "UINT8"))).requests
    with pytest.raises(ItemError, match="expected bytes"):
        request.as_bytes()


BODY, HEADERS = sent(tensor("x", np.array([b"abc"], dtype=object), "BYTES"))
LENGTH = int(HEADERS["Inference-Header-Content-Length"])


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (BODY, "0"),
        (BODY, "-1"),
        (BODY, "x"),
        (BODY, "9" * 30),
        (BODY, str(len(BODY) + 1)),
        (BODY, str(LENGTH - 1)),
        (BODY, str(LENGTH + 1)),
        (BODY[:-1], str(LENGTH)),
        (BODY + b"x", str(LENGTH)),
        (BODY[:LENGTH] + b"\xff\xff\xff\xffabc", str(LENGTH)),
        (b"[]", "2"),
        (b'{"inputs": []}', "14"),
        (BODY.replace(b'"binary_data_size":7', b'"binary_data_size":0'), str(LENGTH)),
        (BODY.replace(b'"BYTES"', b'"INT64"'), str(LENGTH)),
        (BODY.replace(b'"BYTES"', b'"BF16" '), str(LENGTH)),
    ],
)
def test_a_request_that_does_not_add_up_is_refused(body: bytes, length: str) -> None:
    with pytest.raises(ItemError) as caught:
        opened(body, {V2_JSON_LENGTH: length})
    assert 400 <= caught.value.code < 500
