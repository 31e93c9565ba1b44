"""Numbers that a request brings: each arrives as it was sent, or the request is refused with 422."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith_handler.envelope import open_envelope
from marsmith_handler.errors import BadRequest, ItemError, UnprocessableContent
from marsmith_handler.exact_numbers import exact_tensor, numbers_of
from support.handler_fixtures import Doubling, Worker, npy, write_manifest, write_model

WHOLE = [getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
REFUSED = "refused"


def taken(value: Any, dtype: torch.dtype) -> Any:
    try:
        return exact_tensor(numbers_of(value, "x"), dtype, "x").tolist()
    except (BadRequest, UnprocessableContent):
        return REFUSED


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (16777217, torch.int64, 16777217),
        (16777217, torch.float32, REFUSED),
        (1.9, torch.uint8, REFUSED),
        (-1, torch.uint8, REFUSED),
        (256, torch.uint8, REFUSED),
        (3, torch.bfloat16, 3.0),
        (257, torch.bfloat16, REFUSED),
        (70000, torch.float16, REFUSED),
        (70000.0, torch.float16, REFUSED),
        (1e39, torch.float32, REFUSED),
        (1e39, torch.float64, 1e39),
        (2**53 + 1, torch.int64, 2**53 + 1),
        (2**53 + 1, torch.uint64, 2**53 + 1),
        (2**53 + 1, torch.float64, REFUSED),
        (2**64 - 1, torch.uint64, 2**64 - 1),
        (2**64, torch.uint64, REFUSED),
        (2**63, torch.int64, REFUSED),
        (2**100, torch.float64, float(2**100)),
        (2**100 + 1, torch.float64, REFUSED),
        (10**400, torch.float64, REFUSED),
        (1.0, torch.int8, 1),
        (float(2**53), torch.int64, REFUSED),
        (True, torch.int64, REFUSED),
        (True, torch.float32, REFUSED),
        (True, torch.bool, True),
        (1, torch.bool, True),
        (2, torch.bool, REFUSED),
        (0.1, torch.float32, float(np.float32(0.1))),
        (math.inf, torch.float32, REFUSED),
        (math.nan, torch.int64, REFUSED),
        (None, torch.float32, REFUSED),
        ("1", torch.float32, REFUSED),
        ({"a": 1}, torch.float32, REFUSED),
    ],
)
def test_one_number(value: Any, dtype: torch.dtype, expected: Any) -> None:
    assert taken(value, dtype) == expected
    # Neighbours of another type change nothing of it.
    others = [1, 0.5] if dtype.is_floating_point else [1, 1.0] if dtype != torch.bool else [True, 0]
    for beside in others:
        several = taken([beside, value], dtype)
        assert several == REFUSED if expected == REFUSED else several[1] == expected


def test_a_nan_is_a_float_and_nothing_else() -> None:
    assert math.isnan(taken([1, math.nan], torch.float32)[1])


NUMBERS = (
    st.integers(-(2**65), 2**65)
    | st.integers(-300, 300)
    | st.floats(allow_infinity=False)
    | st.sampled_from([2**24 + 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 65504, 65520.0, 3.5e38, -0.0])
)


@given(st.lists(NUMBERS, max_size=5), st.sampled_from([*WHOLE, *FLOATS]))
@settings(max_examples=600)
def test_what_is_taken_is_what_was_sent(sent: list[Any], dtype: torch.dtype) -> None:
    got = taken(sent, dtype)
    if got == REFUSED:
        assert any(not fits(one, dtype) for one in sent)
        return
    for one, other in zip(sent, got, strict=True):
        assert fits(one, dtype)
        if isinstance(one, int) or not dtype.is_floating_point:
            assert one == other
        elif not math.isnan(one):
            assert other == torch.tensor(one, dtype=torch.float64).to(dtype).item()


def fits(number: Any, dtype: torch.dtype) -> bool:
    """Say the rule again, for one number, in Python's exact arithmetic."""
    if not dtype.is_floating_point:
        whole = isinstance(number, int) or (number.is_integer() and abs(number) < 2**53)
        return whole and torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max
    if isinstance(number, float) and math.isnan(number):
        return True
    held = torch.tensor(float(number), dtype=torch.float64).to(dtype).item()
    return not math.isinf(held) and (isinstance(number, float) or held == number)


def handler(tmp_path: Path, **settings: Any) -> Worker:
    folder = tmp_path / "model"
    write_model(folder, Identity())
    write_manifest(folder, "tensor_handler.py")
    config = {"minWorkers": 1, "handler": {"warm_up_s": 0.001, **settings}}
    (folder / "model-config.yaml").write_text(json.dumps(config), encoding="utf-8")
    return Worker(folder, "tensor_handler.py")


class Identity(Doubling):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


@pytest.mark.parametrize("named", [False, True])
def test_the_tensor_handler_answers_with_what_was_sent_or_422(tmp_path: Path, named: bool) -> None:
    def worker(dtype: str) -> Worker:
        settings = {"inputs": [{"name": "x", "dtype": dtype, "shape": [1]}]} if named else {"input_dtype": dtype}
        return handler(tmp_path / dtype, **settings)

    def answers(dtype: str, *values: Any) -> list[Any]:
        bodies = [(json.dumps([value]).encode(), "application/json") for value in values]
        return [reply.json()[0] if reply.status == 200 else reply.status for reply in worker(dtype).send(*bodies)]

    assert answers("int64", 16777217, 2**53 + 1, 1.9, 1.0) == [16777217, 2**53 + 1, 422, 1]
    assert answers("uint8", 255, 256, -1, 1.9, True) == [255, 422, 422, 422, 422]
    assert answers("bfloat16", 3, 257, 0.5, 1e39) == [3.0, 422, 0.5, 422]


def test_without_a_dtype_json_is_float32_and_a_file_is_what_it_says(tmp_path: Path) -> None:
    worker = handler(tmp_path)
    exact, rounded, big = worker.send(b"[16777216]", b"[16777217]", npy(np.array([2**53 + 1])))
    assert (exact.json(), rounded.status) == ([16777216.0], 422)
    assert np.load(BytesIO(big.body)).tolist() == [2**53 + 1]


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("INT64", [2**53 + 1], [2**53 + 1]),
        ("UINT64", [2**64 - 1], [2**64 - 1]),
        ("INT8", [128], 422),
        ("UINT8", [1.9], 422),
        ("UINT8", [-1], 422),
        ("FP32", [16777217], 422),
        ("FP16", [1e6], 422),
        ("FP32", ["1"], 400),
        ("BOOL", [True, 0], [True, False]),
        ("BOOL", [2], 422),
        ("INT32", [True], 422),
    ],
)
def test_v2_in_json_is_exact_or_refused(datatype: str, data: list[Any], expected: Any) -> None:
    one = {"name": "x", "shape": [len(data)], "datatype": datatype, "data": data}
    fields = {"body": json.dumps({"inputs": [one]}).encode()}
    if isinstance(expected, int):
        with pytest.raises(ItemError) as caught:
            open_envelope(fields, {})
        assert caught.value.code == expected
    else:
        assert open_envelope(fields, {}).requests[0].body.tolist() == expected


def test_a_truth_value_in_bytes_is_0_or_1() -> None:
    one = {"name": "x", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    head = json.dumps({"inputs": [one]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    assert open_envelope({"body": head + b"\0\1"}, headers).requests[0].body.tolist() == [False, True]
    with pytest.raises(ItemError, match="neither 0 nor 1"):
        open_envelope({"body": head + b"\0\2"}, headers)


def test_a_bfloat16_answer_to_a_file_is_a_file(tmp_path: Path) -> None:
    worker = handler(tmp_path, input_dtype="bfloat16")
    (reply,) = worker.send((npy(np.array([1.0, 0.5], np.float32)), "application/x-npy"))
    np.testing.assert_array_equal(np.load(BytesIO(reply.body)), np.array([1.0, 0.5], np.float32))


def test_binary_tensors_of_another_dtype_are_converted_exactly_or_refused(tmp_path: Path) -> None:
    worker = handler(tmp_path, input_dtype="float32")
    rows = [np.array([2**24]), np.array([2**24 + 1]), np.array([1e39]), np.array([0.1]), np.array([True])]
    replies = worker.send(*[(npy(row), "application/x-npy") for row in rows])
    assert [reply.status for reply in replies] == [200, 422, 422, 200, 200]
