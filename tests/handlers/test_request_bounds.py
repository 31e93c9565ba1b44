"""What one allowed request can cost: elements are counted before they are made, in every envelope and file format."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith_handler import bounded_json, file_pieces
from marsmith_handler import envelope as request_envelope
from marsmith_handler.bounded_json import holds_at_most, parse_json
from marsmith_handler.envelope import open_envelope
from marsmith_handler.errors import ItemError
from marsmith_handler.request import Request
from marsmith_handler.tensor.formats import read_safetensors
from support.handler_fixtures import Doubling, Worker, classifier_folder, write_manifest, write_model
from support.huge_requests import SIZE, filled, safetensors_header
from support.long_tests import long, mostly_long
from support.pictures import picture
from support.projects import REPOSITORY

MOST_MIB = 200
# Of each envelope the bodies that cost most: many small values, long texts, pieces of files.
WORST = [
    *("short texts, as many as are parsed", "keys, as many as are parsed", "one text beyond the BMP"),
    *("instances of tensors, as many as are parsed", "instances of long texts"),
    *("v2 elements, as many as are parsed", "v2 long texts", "v2 binary elements"),
    *("PNG chunks", "safetensors over each other", "texts of marks, as many as are read", "text"),
]
JSON_TYPE = {"body": {"content-type": "application/json"}}


def refusal(work: Callable[[], Any]) -> ItemError:
    with pytest.raises(ItemError) as caught:
        work()
    return caught.value


@pytest.mark.parametrize("names", [pytest.param(WORST, id="worst"), pytest.param([], id="all", marks=long("requests"))])
def test_no_body_of_the_allowed_size_takes_much_memory_and_each_is_answered_or_refused(names: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "handlers"), "PYTHONDONTWRITEBYTECODE": "1"}
    program = REPOSITORY / "tests" / "support" / "huge_requests.py"
    told = json.loads(
        subprocess.run([sys.executable, program, *names], env=environment, capture_output=True, check=True).stdout
    )
    assert {name: cost["mib"] for name, cost in told.items() if cost["mib"] > MOST_MIB} == {}
    assert {code for cost in told.values() for code in cost["codes"]} <= {200, 400, 413, 415, 422}
    # It did measure: the largest text alone is 64 MiB in memory, and comes as one.
    assert told["one text beyond the BMP"]["mib"] > 64


@pytest.mark.parametrize(
    "body",
    [
        filled('"",'),
        filled("[],"),
        filled("{},"),
        filled('"",', '{"instances":[', "]}"),
        filled("[1],", '{"instances":[', "]}"),
        filled('"",', '{"inputs":[{"datatype":"BYTES","data":[', "]}]}"),
        filled('{"datatype":"BYTES","data":[""]},', '{"inputs":[', "]}"),
    ],
    ids=lambda body: bytes(body[:40]).decode(),
)
@pytest.mark.parametrize(
    "content_type",
    mostly_long("requests", ["application/json", "", "text/plain", "application/vnd.x+json"], ["application/json", ""]),
)
def test_no_element_of_too_many_is_made(body: bytes, content_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(json, "loads", lambda text: made.append(text))
    monkeypatch.setattr(request_envelope, "Request", counting(made, Request))
    error = refusal(lambda: open_envelope({"body": bytearray(body)}, {"body": {"content-type": content_type}}))
    assert (error.code, len(made)) == (413, 1)
    assert ".npy" in error.message


def counting(made: list[Any], real: Callable[..., Any]) -> Callable[..., Any]:
    def make(*values: Any) -> Any:
        made.append("")
        return real(*values)

    return make


def elements_behind_json(count: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    one = {"name": "x", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": 4 * count}}
    head = json.dumps({"inputs": [one]}).encode()
    return {"body": head + bytes(4 * count)}, {"inference-header-content-length": str(len(head))}


def in_each_envelope(count: int) -> dict[str, tuple[dict[str, Any], Mapping[str, Any]]]:
    """Return requests with ``count`` items, the last of which cannot be opened."""
    items: list[Any] = ["YQ==" for _ in range(count - 1)]
    bad = {"b64": 7}
    v2 = {"name": "x", "shape": [count], "datatype": "BYTES", "data": [*items, bad]}
    each = {"name": "x", "shape": [1], "datatype": "BYTES"}
    bodies = {
        "many": [*items, bad],
        "v1": {"instances": [*items, bad]},
        "v2 elements": {"inputs": [v2]},
        "v2 inputs": {"inputs": [{**each, "data": [item]} for item in [*items, bad]]},
    }
    fields = {f"f{number}": b"a" for number in range(count - 1)} | {"bad": b'{"b64": 7}'}
    return {
        **{name: ({"body": json.dumps(body).encode()}, JSON_TYPE) for name, body in bodies.items()},
        "form": (fields, {}),
    }


@pytest.mark.parametrize("envelope", in_each_envelope(2))
def test_items_are_counted_before_any_is_opened(envelope: str) -> None:
    fields, headers = in_each_envelope(6)[envelope]
    assert refusal(lambda: open_envelope(fields, headers, 6)).code == 400
    assert refusal(lambda: open_envelope(fields, headers, 5)).code == 413


def test_elements_behind_the_json_are_read_up_to_the_limit_and_no_further() -> None:
    fields, headers = elements_behind_json(6)
    assert len(open_envelope(fields, headers, 6).requests) == 6
    # The bytes after the first few would be refused for what they are, if they were read.
    broken = {"body": bytes(fields["body"][:-4]) + b"\xff" * 4}
    assert refusal(lambda: open_envelope(broken, headers, 6)).code == 400
    assert refusal(lambda: open_envelope(broken, headers, 4)).code == 413


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet='a,:[{"\\é\n', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='b,:"\\', max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


def weight(value: Any) -> int:
    """Count as ``MAX_VALUES`` is meant: numbers once, texts, keys, lists and objects twice."""
    if isinstance(value, str):
        return 2
    if isinstance(value, list):
        return 2 + max(0, sum(weight(item) for item in value))
    if isinstance(value, dict):
        return 2 + sum(2 + weight(item) for item in value.values())
    return 1


@given(JSON_VALUES, st.booleans(), st.integers(1, 40))
@settings(max_examples=300)
def test_values_are_counted_whatever_stands_in_texts(value: Any, as_ascii: bool, chunk: int) -> None:
    text = json.dumps(value, ensure_ascii=as_ascii)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded_json, "_CHUNK", chunk)
        # The empty list and the empty object have no first element to count, which is all the room for doubt.
        assert holds_at_most(text, weight(value))
        assert not holds_at_most(text, (weight(value) - 1) // 2)
        assert parse_json(text) == value


def test_tensors_of_images_pass_as_json_and_large_ones_are_told_how(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_model(folder, Doubling())
    write_manifest(folder, "tensor_handler.py")
    (folder / "model-config.yaml").write_text(json.dumps({"handler": {"max_response_bytes": 10**9}}), encoding="utf-8")
    worker = Worker(folder, "tensor_handler.py")
    image = np.random.default_rng(0).random((3, 224, 224)).astype(np.float32)
    bodies = [image.tolist(), {"data": image.tolist()}, {"instances": [image.tolist()] * 2}]
    for body in bodies:
        (reply,) = worker.send((json.dumps(body).encode(), "application/json"))
        answer = reply.json()["predictions"][1] if "instances" in body else reply.json()
        np.testing.assert_array_equal(np.array(answer, np.float32), image * 2)
    # As many floats as json.dumps writes into 16 MiB are within the bounds.
    assert holds_at_most(filled(json.dumps(float(np.float64(1) / 3)) + ", ").decode(), bounded_json.MAX_VALUES)


def bad_requests() -> dict[str, Any]:
    element, headers = elements_behind_json(SIZE // 5)
    assert headers
    return {
        "list": (filled('"",'), "application/json"),
        "lists": (filled("[],"), "application/json"),
        "v1": (filled('"",', '{"instances":[', "]}"), "application/json"),
        "v2": (filled('"",', '{"inputs":[{"datatype":"BYTES","data":[', "]}]}"), "application/json"),
        "datatype": (filled("x", '{"inputs":[{"data":[1],"datatype":"', '"}]}'), "application/json"),
        "id": (filled("x", '{"inputs":[{"data":["YQ=="],"datatype":"BYTES"}],"id":"', '"}'), "application/json"),
        "form": [(f"field{number}", "image/png", b"x") for number in range(300)],
        "raw": element["body"],
    }


@pytest.mark.parametrize("name", bad_requests())
def test_neighbours_of_a_huge_request_get_their_answers_and_it_a_short_refusal(tmp_path: Path, name: str) -> None:
    worker = Worker(classifier_folder(tmp_path / "model"), "image_classifier_handler.py")
    good = picture(200, 10, 10)
    first, huge, last = worker.send(good, bad_requests()[name], good)
    assert [first.status, last.status] == [200, 200]
    assert 400 <= huge.status < 500
    # A reply over TorchServe's max_response_size would cost the worker.
    assert len(huge.body) < 10_000


def test_tensors_that_share_bytes_and_shapes_without_end_are_refused() -> None:
    assert refusal(lambda: read_safetensors(safetensors_header(50))).code == 400
    entry = {"dtype": "U8", "shape": [9] * 400_000, "data_offsets": [0, 1]}
    header = json.dumps({"x": entry}).encode()
    assert "axes" in refusal(lambda: read_safetensors(len(header).to_bytes(8, "little") + header + b"x")).message
    many = json.dumps({str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(1001)}).encode()
    assert refusal(lambda: read_safetensors(len(many).to_bytes(8, "little") + many)).code == 413


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("JPEG", "RGB"), ("GIF", "P")])
def test_the_pieces_of_a_picture_are_counted(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from io import BytesIO

    from PIL import Image

    stream = BytesIO()
    Image.new(mode, (8, 8)).save(stream, kind, comment=b"hello" * 200)
    data = memoryview(stream.getvalue())
    walked = len(list(file_pieces._WALKS[kind](data)))
    assert 2 <= walked < 20
    monkeypatch.setattr(file_pieces, "MAX_PIECES", walked)
    assert not file_pieces.in_too_many_pieces(data, kind)
    monkeypatch.setattr(file_pieces, "MAX_PIECES", walked - 1)
    assert file_pieces.in_too_many_pieces(data, kind)


@given(st.binary(max_size=60), st.sampled_from(["PNG", "JPEG", "GIF", "WAV", "BMP"]))
def test_any_bytes_can_be_walked(data: bytes, kind: str) -> None:
    assert not file_pieces.in_too_many_pieces(memoryview(data), kind)


def test_base64_is_read_with_line_breaks_and_refused_with_anything_else() -> None:
    text = base64.encodebytes(b"x" * 200).decode()
    opened = open_envelope({"body": json.dumps({"b64": text + " \t\r\n"}).encode()}, JSON_TYPE)
    assert opened.requests[0].as_bytes() == b"x" * 200
    for wrong in ("YQ=", "Y-Q=", "YQ==é", "\u00a0YQ=="):
        body = json.dumps({"b64": wrong}).encode()
        assert refusal(lambda body=body: open_envelope({"body": body}, JSON_TYPE)).code == 400  # type: ignore[misc]


@pytest.mark.parametrize("fields", [{}, {"good": b"bad film"}, {"a": b"1", "data": b"x"}, {"[1, 2]": b""}])
def test_a_form_that_is_not_meant_as_one_is_refused_with_the_call_that_works(fields: dict[str, bytes]) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    error = refusal(lambda: open_envelope(fields, headers))
    assert (error.code, "--data-binary" in error.message) == (415, True)
    assert open_envelope({"data": b"x"}, headers).requests[0].body == b"x"
    # Nothing came at all: another matter.
    assert refusal(lambda: open_envelope({}, {})).code == 400
