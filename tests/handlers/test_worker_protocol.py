"""Our side of the wire protocol against TorchServe's own side, over a real socket."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith.errors import HandlerError
from marsmith.runtime.worker_protocol import (
    InferenceRequest,
    LoadMessage,
    Parameter,
    Prediction,
    WorkerResponse,
    decode_response,
    encode_load,
    encode_predict,
    parse_metric,
)

with warnings.catch_warnings():
    # TorchServe leaves its version file open when it is imported.
    warnings.simplefilter("ignore", ResourceWarning)
    from ts.context import Context, RequestProcessor
    from ts.protocol.otf_message_handler import create_load_model_response, create_predict_response, retrieve_msg

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ascii_texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
loads = st.builds(LoadMessage, names, names, names, st.integers(1, 64), st.none() | st.integers(0, 7), st.booleans())
parameters = st.builds(Parameter, names, st.binary(max_size=200), st.sampled_from(["", "image/png", "application/x"]))
requests = st.builds(
    InferenceRequest, names, st.dictionaries(names, texts, max_size=3), st.lists(parameters, max_size=3).map(tuple)
)
values = st.binary(max_size=200) | texts | st.dictionaries(texts, st.integers(), max_size=3)

answers = st.tuples(values, ascii_texts, st.integers(100, 599), ascii_texts)


def received(message: bytes) -> tuple[bytes, Any]:
    """Return what TorchServe's worker makes of ``message``."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(message,))
        sender.start()
        result: tuple[bytes, Any] = retrieve_msg(theirs)
        sender.join()
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
    return result


@settings(max_examples=30, deadline=None)
@given(loads)
def test_a_worker_reads_every_load_message_as_it_was_meant(load: LoadMessage) -> None:
    command, read = received(encode_load(load))
    assert command == b"L"
    assert read["modelName"].decode() == load.model_name
    assert read["modelPath"].decode() == load.model_dir
    assert read["handler"].decode() == load.handler
    assert read["batchSize"] == load.batch_size
    assert read.get("gpu") == load.gpu_id
    assert read["limitMaxImagePixels"] == load.limit_max_image_pixels
    assert read["envelope"] == b""


@settings(max_examples=50, deadline=None)
@given(st.lists(requests, max_size=3))
def test_a_worker_reads_every_batch_as_it_was_meant(batch: list[InferenceRequest]) -> None:
    command, read = received(encode_predict(batch))
    assert command == b"I"
    got = [
        InferenceRequest(
            item["requestId"].decode(),
            {header["name"].decode(): header["value"].decode() for header in item["headers"]},
            tuple(Parameter(p["name"], bytes(p["value"]), p["contentType"]) for p in item["parameters"]),
        )
        for item in read
    ]
    assert got == batch


def body_of(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value, indent=2).encode()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(values, ascii_texts, st.integers(100, 599), ascii_texts), min_size=1, max_size=3), st.binary()
)
def test_every_response_of_a_worker_is_read_to_its_last_byte_and_no_further(
    items: list[tuple[Any, str, int, str]], rest: bytes
) -> None:
    context = Context("m", "/", {}, len(items), None, "0")
    context.request_processor = [RequestProcessor({}) for _ in items]
    for i, (_, content_type, status, phrase) in enumerate(items):
        context.set_response_content_type(i, content_type)
        context.set_response_status(status, phrase, i)
    ids = {i: f"request {i}" for i in range(len(items))}
    sent = create_predict_response([item[0] for item in items], ids, "Prediction success", 200, context)
    stream = io.BytesIO(bytes(sent) + rest)

    expected = tuple(
        Prediction(ids[i], kind, status, phrase, {"content-type": kind}, body_of(value))
        for i, (value, kind, status, phrase) in enumerate(items)
    )
    assert decode_response(stream) == WorkerResponse(200, "Prediction success", expected)
    assert stream.read() == rest


def test_the_answer_to_a_load_has_no_predictions() -> None:
    sent = create_load_model_response(507, "System out of memory")
    assert decode_response(io.BytesIO(sent)) == WorkerResponse(507, "System out of memory")


@given(st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_a_response_that_is_cut_off_anywhere_is_refused(length: int) -> None:
    sent = bytes(create_predict_response(None, {0: "a-request-id-that-is-long"}, "Prediction failed", 503))
    assert len(sent) > 60
    with pytest.raises(HandlerError, match="wire protocol"):
        decode_response(io.BytesIO(sent[:length]))


def test_a_field_longer_than_the_frontend_takes_is_refused_with_both_lengths() -> None:
    sent = struct.pack("!ii", 200, 6_553_501)
    with pytest.raises(HandlerError, match=r"6,553,501 bytes, but TorchServe's limit is 6,553,500"):
        decode_response(io.BytesIO(sent))


def test_a_non_ascii_content_type_breaks_the_protocol_and_the_error_says_what_to_keep_ascii() -> None:
    context = Context("m", "/", {}, 1, None, "0")
    context.request_processor = [RequestProcessor({})]
    context.set_response_content_type(0, "text/plain; title=éééééééé")
    sent = create_predict_response(["x"], {0: "id"}, "Prediction success", 200, context)
    with pytest.raises(HandlerError) as caught:
        decode_response(io.BytesIO(sent))
    assert "ASCII" in str(caught.value.tip)


def test_a_metric_line_is_read_with_its_unit_dimensions_and_request() -> None:
    line = "[METRICS]HandlerTime.Milliseconds:1.25|#ModelName:m,Level:Model|#type:GAUGE|#hostname:h,1795243735,a,b"
    metric = parse_metric(line)
    assert metric is not None
    assert (metric.name, metric.unit, metric.value, metric.request_id) == ("HandlerTime", "Milliseconds", 1.25, "a,b")
    assert metric.dimensions == {"ModelName": "m", "Level": "Model"}


@pytest.mark.parametrize("line", ["", "hello", "[METRICS]Failed to update metric with name:x", "[METRICS]a.b:x|#|"])
def test_a_line_that_is_no_measurement_gives_none(line: str) -> None:
    assert parse_metric(line) is None
