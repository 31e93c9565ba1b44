"""The one rule by which replies are judged: by workers, ``verify --replay``, ``serve`` and ``deploy``."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image

from marsmith.archive.examples import ValidatedExample
from marsmith_handler.answers import (
    FALLBACK_TOLERANCE,
    Allowance,
    Judgement,
    allowance,
    can_be_compared,
    compare,
    judge,
)
from marsmith_handler.tensor.formats import write_safetensors
from support.handler_fixtures import Doubling, Worker, npy, write_examples, write_manifest, write_model

BFLOAT16 = {"engine": "openvino", "precision": "bfloat16"}
FELL_BACK = {"precision": "float32", "engine_fell_back": "openvino is not installed"}
AS_SET = {"precision": "bfloat16", "engine_fell_back": False}


@pytest.mark.parametrize("precision", FALLBACK_TOLERANCE)
def test_another_engine_may_differ_by_what_the_precision_is_coarse(precision: str) -> None:
    fell_back = {"precision": "float32", "engine_fell_back": "why"}
    assert allowance({"precision": precision}, fell_back) == Allowance(FALLBACK_TOLERANCE[precision], same_bytes=False)
    own = {"precision": precision, "engine_tolerance": 0.007}
    assert allowance(own, fell_back) == Allowance(0.007, same_bytes=False)
    assert allowance(own, {"precision": precision, "engine_fell_back": False}).tolerance == 0
    assert allowance(own, {}) == Allowance()


def example(reply: Any, tolerance: float = 0.05) -> ValidatedExample:
    return ValidatedExample("a", "", 200, reply, None, tolerance)


def of_bytes(body: bytes, tolerance: float = 0.05, *, recorded: bool = True) -> ValidatedExample:
    digest = hashlib.sha256(body).hexdigest()
    return ValidatedExample("a", "", 200, None, digest, tolerance, "a.reply", body if recorded else None)


@pytest.mark.parametrize(
    ("settings", "facts", "agrees"),
    [(BFLOAT16, FELL_BACK, True), (BFLOAT16, AS_SET, False), (BFLOAT16, {}, False), ({}, FELL_BACK, False)],
)
def test_what_really_runs_decides_how_far_a_number_may_be(
    settings: Mapping[str, Any], facts: Mapping[str, Any], agrees: bool
) -> None:
    found = judge(example({"cat": 0.5}), 200, b'{"cat": 0.58}', settings, lambda: facts)
    assert (found.problem is None) == agrees


def test_a_worker_is_asked_only_about_a_reply_that_is_not_the_validated_one() -> None:
    def ask() -> Mapping[str, Any]:
        raise AssertionError

    assert judge(example({"cat": 0.5}), 200, b'{"cat": 0.52}', BFLOAT16, ask).problem is None
    assert "status 500" in (judge(example({"cat": 0.5}), 500, b"", BFLOAT16, ask).problem or "")
    assert judge(example({"cat": 0.5}), 200, b'{"cat": 0.9}', {}, ask).problem


@pytest.mark.parametrize(
    ("expected", "actual", "agree"),
    [
        ({"cat": 0.6, "dog": 0.3}, {"cat": 0.62, "eel": 0.28}, True),
        # Another class on top, one class more, and a class that is told too low to be swapped for.
        ({"cat": 0.5, "dog": 0.49}, {"eel": 0.5, "dog": 0.49}, False),
        ({"cat": 0.6}, {"cat": 0.6, "dog": 0.01}, False),
        ({"cat": 0.6, "dog": 0.3}, {"cat": 0.6, "eel": 0.1}, False),
    ],
)
def test_the_last_of_the_best_few_may_be_swapped_for_the_next_one(expected: Any, actual: Any, agree: bool) -> None:
    found = compare(example(expected), 200, json.dumps(actual).encode(), Allowance())
    assert (found.problem is None) == agree


# Bytes --------------------------------------------------------------------------------------------------------------


def png(pixels: np.ndarray[Any, Any], kind: str = "PNG", mode: str | None = None) -> bytes:
    stream = BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


MASK = np.zeros((40, 50), np.uint8)
MASK[10:30, 10:40] = 7
EDGE = MASK.copy()
EDGE[10, 10:40] = 0
GONE = np.zeros_like(MASK)
PHOTO = np.linspace(0, 255, 3 * 40 * 50).astype(np.uint8).reshape(40, 50, 3)
ROW = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [
        # A mask of another machine: its edge by one row, which is 1.5 % of the pixels.
        (png(MASK * 30), png(EDGE * 30), None),
        (png(MASK * 30), png(GONE), "frame 0 of the reply differs in 30.0% of its pixels"),
        (png(PHOTO), png(PHOTO // 2), "of its pixels"),
        (png(PHOTO), png(PHOTO, "WEBP"), None),
        (png(PHOTO, "JPEG"), png(PHOTO + 1, "JPEG"), None),
        (png(PHOTO), png(PHOTO[:, :20]), "uint8 [40, 20, 3]"),
        (png(PHOTO, mode="P"), png(PHOTO[::-1], mode="P"), "of its pixels"),
        (png(PHOTO), b"a cat", "no longer an image: a cat"),
        (npy(ROW), npy(ROW + 0.04), None),
        (npy(ROW), npy(ROW + 0.06), "array in the reply is off by 0.06 (tolerance 0.05)"),
        (npy(ROW), npy(ROW.astype(np.float64)), "float64 [3, 4]"),
        (npy(ROW), npy(ROW.ravel()), "float32 [12]"),
        (npy(np.array([np.nan, np.inf])), npy(np.array([np.nan, np.inf], order="F")), None),
        (npy(np.array([1.0, 2.0])), npy(np.array([1.0, np.nan])), "off by nan"),
        (npy(np.array([2**60])), npy(np.array([2**60 + 1])), None),
        (write_safetensors({"a": ROW, "b": ROW}), write_safetensors({"b": ROW + 0.01, "a": ROW}), None),
        (write_safetensors({"a": ROW}), write_safetensors({"a": ROW + 1}), "a in the reply is off by 1"),
        (write_safetensors({"a": ROW}), write_safetensors({"b": ROW}), "the reply holds {'b'"),
        (b"a cat, 0.91", b"a cat, 0.93", None),
        (b"a cat, 0.91", b"a cat, 0.99", "numbers in the reply[0]: 0.99 instead of 0.91"),
        (b"a cat, 0.91", b"a dog, 0.91", "the reply is 'a dog, 0.91' instead of 'a cat, 0.91'"),
        (b"RIFF\x04\0\0\0WAVE\xff", b"RIFF\x04\0\0\0WAVE\xfe", "not those that were validated"),
    ],
)
def test_bytes_are_compared_by_what_they_say(expected: bytes, actual: bytes, said: str | None) -> None:
    found = compare(of_bytes(expected, recorded=can_be_compared(expected)), 200, actual, Allowance())
    assert found.unproved is None
    assert (found.problem is None) if said is None else (said in (found.problem or "no problem"))


def test_bytes_of_which_only_a_digest_is_known_are_proved_or_said_to_be_unproved() -> None:
    known = of_bytes(b"\xff\x00wave", recorded=False)
    assert compare(known, 200, b"\xff\x00wave", Allowance(same_bytes=False)) == Judgement()
    assert compare(known, 200, b"\xff\x00other", Allowance()).problem
    loosely = compare(known, 200, b"\xff\x00other", Allowance(same_bytes=False))
    assert loosely.problem is None
    assert "of which only the digest is known" in (loosely.unproved or "")


def test_an_image_is_unproved_where_pillow_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    found = compare(of_bytes(png(MASK)), 200, png(EDGE), Allowance())
    assert found.problem is None
    assert "cannot be compared here" in (found.unproved or "")


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_can_be_judged(one: bytes, other: bytes) -> None:
    found = compare(of_bytes(one, recorded=can_be_compared(one)), 200, other, Allowance(same_bytes=False))
    assert one != other or found == Judgement()
    assert found.problem is None or found.unproved is None


@given(arrays_of.arrays(np.float32, arrays_of.array_shapes(max_dims=3), elements=st.floats(-1, 1, width=32)))
def test_arrays_differ_by_their_largest_difference(array: np.ndarray[Any, Any]) -> None:
    moved = array.copy()
    moved.flat[-1] += 0.5
    assert compare(of_bytes(npy(array), 0.51), 200, npy(moved), Allowance()).problem is None
    assert compare(of_bytes(npy(array), 0.49), 200, npy(moved), Allowance()).problem


# In a worker --------------------------------------------------------------------------------------------------------


def doubling(folder: Path, body: bytes, reply: bytes, *, recorded: bool) -> Path:
    """An archive of our tensor handler, in bfloat16, with one example."""
    write_model(folder, Doubling())
    write_manifest(folder, "tensor_handler.py")
    config = {"minWorkers": 1, "handler": {"precision": "bfloat16"}}
    (folder / "model-config.yaml").write_text(json.dumps(config))
    entry = {
        "input": "a.npy",
        "content_type": "application/x-npy",
        "status": 200,
        "reply": None,
        "reply_sha256": hashlib.sha256(reply).hexdigest(),
        "tolerance": 0.05,
        **({"reply_file": "a.npy.reply"} if recorded else {}),
    }
    write_examples(folder, [entry], {"a.npy": body, **({"a.npy.reply": reply} if recorded else {})})
    return folder


def test_a_worker_compares_byte_replies_in_bfloat16_too(tmp_path: Path) -> None:
    right = doubling(tmp_path / "right", npy(ROW), npy(ROW * 2 + 0.04), recorded=True)
    told = Worker(right, "tensor_handler.py").send(b"", headers={"describe": "True"})[0].json()
    assert (told["examples_replayed"], told["examples_unproved"]) == (1, 0)
    wrong = doubling(tmp_path / "wrong", npy(ROW), npy(ROW * 3), recorded=True)
    with pytest.raises(RuntimeError, match=r"array in the reply is off by 1 \(tolerance 0\.05\)"):
        Worker(wrong, "tensor_handler.py")


def test_a_worker_says_which_byte_replies_it_cannot_prove(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = doubling(tmp_path / "old", npy(ROW), npy(ROW * 3), recorded=False)
    told = Worker(folder, "tensor_handler.py").send(b"", headers={"describe": "True"})[0].json()
    assert told["examples_unproved"] == 2
    assert "an answer is unproved: example 'a.npy' alone: " in caplog.text
