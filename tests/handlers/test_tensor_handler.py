from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from marsmith_handler.errors import ItemError
from marsmith_handler.tensor.formats import SAFETENSORS_DTYPES, read_npy, read_safetensors, write_npy, write_safetensors
from support.handler_fixtures import Doubling, Worker, npy, write_manifest, write_model


def doubling(tmp_path: Path, **handler: Any) -> Worker:
    folder = tmp_path / "model"
    write_model(folder, Doubling())
    write_manifest(folder, "tensor_handler.py")
    (folder / "model-config.yaml").write_text(json.dumps({"minWorkers": 1, "handler": handler}), encoding="utf-8")
    return Worker(folder, "tensor_handler.py")


def as_json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value).encode(), "application/json"


def test_json_numbers_are_answered_as_lists_like_the_stock_handler_does(tmp_path: Path) -> None:
    worker = doubling(tmp_path)
    replies = worker.send(as_json([1, 2.5]), as_json({"data": [[1], [2]]}), as_json(3), b"[4, 5]")
    assert [reply.json() for reply in replies] == [[2.0, 5.0], [[2.0], [4.0]], 6.0, [8.0, 10.0]]


def test_npy_is_answered_as_npy_with_the_dtype_that_the_model_gives(tmp_path: Path) -> None:
    worker = doubling(tmp_path)
    rows: list[Any] = [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.ones(3, np.float32),
        np.asfortranarray(np.ones((2, 3))),
    ]
    replies = worker.send(*[(npy(row), "application/x-npy") for row in rows])
    for row, reply in zip(rows, replies, strict=True):
        answer = np.load(BytesIO(reply.body))
        assert reply.content_type == "application/x-npy"
        assert answer.dtype == row.dtype
        np.testing.assert_array_equal(answer, row * 2)


def test_safetensors_is_answered_as_safetensors_that_the_library_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load, save

    (reply,) = doubling(tmp_path).send((save({"x": np.arange(3, dtype=np.float32)}), "application/x-safetensors"))
    np.testing.assert_array_equal(load(reply.body)["output"], [0, 2, 4])


def test_the_accept_header_chooses_the_format_of_the_reply(tmp_path: Path) -> None:
    worker = doubling(tmp_path)
    (as_list,) = worker.send(npy(np.ones(2, np.float32)), headers={"Accept": "application/json"})
    (as_npy,) = worker.send(as_json([1, 1]), headers={"Accept": "application/x-npy"})
    assert as_list.json() == [2.0, 2.0]
    np.testing.assert_array_equal(np.load(BytesIO(as_npy.body)), [2, 2])


def test_kserve_v2_tensors_keep_their_shape(tmp_path: Path) -> None:
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    (reply,) = doubling(tmp_path).send(as_json({"inputs": [tensor]}))
    (output,) = reply.json()["outputs"]
    assert output == {"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [2.0, 4.0, 6.0, 8.0]}


def test_wrong_tensors_get_their_own_status_and_others_their_answers(tmp_path: Path) -> None:
    worker = doubling(tmp_path, input_shape=[2])
    ragged, long, words, good = worker.send(
        as_json([[1], [2, 3]]), as_json([1, 2, 3]), as_json({"a": 1}), as_json([1, 2])
    )
    assert [ragged.status, long.status, words.status, good.status] == [400, 422, 400, 200]
    assert "[3]" in long.json()["message"]
    nan, good = worker.send(as_json([float("nan"), 1]), as_json([1, 2]))
    assert [nan.status, good.json()] == [500, [2.0, 4.0]]


def test_a_file_that_claims_more_than_it_holds_is_refused_without_the_memory_for_it() -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n"
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with pytest.raises(ItemError, match="has 0 bytes"):
        read_npy(body)
    entry = {"x": {"dtype": "F64", "shape": [10**6, 10**6], "data_offsets": [0, 8 * 10**12]}}
    text = json.dumps(entry).encode()
    with pytest.raises(ItemError, match="do not lie"):
        read_safetensors(len(text).to_bytes(8, "little") + text)


def test_objects_in_npy_are_never_unpickled() -> None:
    with pytest.raises(ItemError) as refused:
        read_npy(npy(np.array([{"a": 1}], dtype=object)))
    assert refused.value.code == 415


@given(
    arrays_of.arrays(
        st.sampled_from(sorted(SAFETENSORS_DTYPES.values())), arrays_of.array_shapes(min_dims=0, max_side=4)
    )
)
@settings(max_examples=60)
def test_arrays_survive_both_formats(array: np.ndarray[Any, Any]) -> None:
    for copy in (read_npy(write_npy(array)), read_safetensors(write_safetensors({"a": array}))["a"]):
        assert (copy.dtype, copy.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(copy, array)


@given(st.integers(0, 200), st.integers(0, 255), st.sampled_from(["npy", "safetensors"]))
@settings(max_examples=200)
def test_a_damaged_file_is_refused_with_a_status_or_read(place: int, value: int, kind: str) -> None:
    array = np.arange(4, dtype=np.float32)
    body = bytearray(write_npy(array) if kind == "npy" else write_safetensors({"a": array}))
    body[place % len(body)] = value
    read = read_npy if kind == "npy" else read_safetensors
    code = 400
    try:
        read(body)
    except ItemError as error:
        code = error.code
    assert code in {400, 415}


def test_the_dtype_of_the_settings_is_used_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    (reply,) = doubling(tmp_path, input_dtype="int64").send(as_json([1, 2]))
    assert reply.body == b"[2, 4]"
    with pytest.raises(RuntimeError, match="'int65' is no dtype"):
        doubling(tmp_path, input_dtype="int65")
    assert torch.get_num_threads() >= 1
