"""Prediction logs of two versions: read while they are written, joined, compared by what they hold, and reported."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.archive.unpacked import UnpackedArchive
from marsmith.errors import HandlerError
from marsmith.predictions import Comparison, Joiner, LogFollower, Pair, Prediction, Tolerance, compare_replies
from marsmith.predictions.hook import has_hook, hook
from marsmith.predictions.log import read_line

LINE = {
    "schema": 2,
    "time": 10.5,
    "key": "r1",
    "key_from": "x-request-id",
    "request_id": "t",
    "model": "m",
    "version": "1.0",
    "shadow": True,
    "status": 200,
    "handler_ms": 3.5,
    "batch": 1,
    "input_sha256": "aa",
    "input_bytes": 3,
    "items": [{}],
    "reply": {"cat": 0.9},
    "reply_sha256": "bb",
    "reply_bytes": 12,
    "worker": 7,
    "dropped": 2,
}
OLDER = {key: LINE[key] for key in ("time", "request_id", "model", "version", "status", "input_sha256", "reply")}


def _line(**other: Any) -> bytes:
    return json.dumps({**LINE, **other}).encode() + b"\n"


def _prediction(key: str = "r1", version: str = "1.0", **other: Any) -> Prediction:
    return read_line(_line(key=key, version=version, **other))


def _pair(old: Any, new: Any) -> Pair:
    return Pair(_prediction(reply=old), _prediction(version="2.0", reply=new))


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_line_of_either_schema_is_read() -> None:
    found = read_line(_line())
    assert (found.schema, found.key, found.handler_ms, found.shadow, found.worker) == (2, "r1", 3.5, True, 7)
    older = read_line(json.dumps(OLDER).encode())
    assert (older.schema, older.key, older.reply) == (1, "aa", {"cat": 0.9})
    assert math.isnan(older.handler_ms)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        _line(schema=4),
        _line(status="200"),
        _line(key=1),
        b"{}",
        _line(time=math.nan),
        _line(time=math.inf),
        _line(time=1e300),
        _line(time=-1.0),
        _line(time=1.7e12),
    ],
)
def test_a_damaged_line_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_line(line)


@given(line=st.binary(max_size=200))
def test_any_bytes_are_a_prediction_or_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_line(line)


def test_a_log_is_followed_while_it_is_written_and_moved_aside(tmp_path: Path) -> None:
    log = tmp_path / "m.jsonl"
    follower = LogFollower(log)
    assert follower.read() == []
    log.write_bytes(_line(key="a") + b"damaged\n" + _line(key="b")[:-5])
    assert [each.key for each in follower.read()] == ["a"]
    assert follower.damaged == 1
    with log.open("ab") as file:
        file.write(_line(key="b")[-5:] + _line(key="c"))
    log.rename(tmp_path / "m.jsonl.1")
    log.write_bytes(_line(key="d"))
    assert [each.key for each in follower.read()] == ["b", "c", "d"]
    assert follower.read() == []
    assert [each.key for each in LogFollower(log).read()] == ["a", "b", "c", "d"]
    late = LogFollower(log, from_end=True)
    with log.open("ab") as file:
        file.write(_line(key="e"))
    assert [each.key for each in late.read()] == [each.key for each in follower.read()] == ["e"]


# Joining --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_a_line_may_be_longer_than_what_is_read_at_once(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marsmith.predictions.log._CHUNK", chunk)
    log = tmp_path / "pets.jsonl"
    log.write_bytes(b"\0" * 5000 + b"\n" + _line(key="a") + b"\n" + _line(key="b") + b'{"half')
    follower = LogFollower(log)
    assert [each.key for each in follower.read()] == ["a", "b"]
    assert follower.damaged == 2
    log.write_bytes(log.read_bytes() + b'"\n' + _line(key="c"))
    assert [each.key for each in follower.read()] == ["c"]


def test_the_same_request_of_two_versions_is_joined_in_any_order() -> None:
    joiner = Joiner("1.0", "2.0")
    assert joiner.add(_prediction("a", "2.0")) is None
    assert joiner.add(_prediction("a", "3.0")) is None
    pair = joiner.add(_prediction("a", "1.0"))
    assert pair is not None
    assert (pair.old.version, pair.new.version) == ("1.0", "2.0")
    assert joiner.waiting == (0, 0)


def test_requests_with_one_id_are_told_apart_by_their_bodies() -> None:
    joiner = Joiner("1.0", "2.0")
    for body in ("x", "y", "y"):
        joiner.add(_prediction("mine", "1.0", input_sha256=body))
    assert joiner.add(_prediction("mine", "2.0", input_sha256="z")) is None
    assert [joiner.add(_prediction("mine", "2.0", input_sha256="y")) is None for _ in range(3)] == [False, False, True]
    assert joiner.waiting == (1, 2)


def test_what_waits_for_a_counterpart_is_bounded_and_the_oldest_is_given_up() -> None:
    joiner = Joiner("1.0", "2.0", most_bytes=5_000)
    for number in range(10):
        joiner.add(_prediction(str(number), "1.0", time=float(number)))
    assert (sum(joiner.waiting), joiner.unmatched) == (4, [6, 0])
    assert joiner.add(_prediction("9", "2.0")) is not None
    assert joiner.add(_prediction("0", "2.0")) is None


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["1.0", "2.0"])), max_size=60),
)
def test_each_prediction_is_in_one_pair_or_waits(requests: list[tuple[str, str]]) -> None:
    joiner = Joiner("1.0", "2.0")
    pairs = [pair for pair in (joiner.add(_prediction(*each)) for each in requests) if pair]
    assert 2 * len(pairs) + sum(joiner.waiting) == len(requests)
    assert all(pair.old.key == pair.new.key for pair in pairs)


# Comparing ------------------------------------------------------------------------------------------------------------

CAT, DOG = {"cat": 0.9, "dog": 0.1}, {"cat": 0.3, "dog": 0.7}


@pytest.mark.parametrize(
    ("old", "new", "agrees", "largest", "flips"),
    [
        (CAT, {"cat": 0.85, "dog": 0.15}, True, 0.05, ()),
        (CAT, {"cat": 0.7, "dog": 0.3}, False, 0.2, ()),
        (CAT, DOG, False, 0.6, (("cat", "dog"),)),
        ({"cat": 0.9}, {"cat": 0.88, "cow": 0.02}, True, 0.02, ()),
        ([CAT, CAT], [CAT, DOG], False, 0.6, (("cat", "dog"),)),
        ({"predictions": [CAT]}, {"predictions": [CAT]}, True, 0.0, ()),
        ([1.0, 2.0], [1.0, 2.0005], True, 0.0005, ()),
        ([100.0], [100.9], True, 0.9, ()),
        ([1.0, 2.0], [1.0, 2.5], False, 0.5, ()),
        ([[1.0]], [[1.0, 2.0]], False, math.nan, ()),
        ({"box": [1, 2], "label": "cat"}, {"box": [1, 2], "label": "dog"}, False, 0, ()),
        ({"a": "text"}, {"b": "text"}, False, math.nan, ()),
        ("text", "text", True, math.nan, ()),
        (True, 1, False, math.nan, ()),
        ([], [], True, math.nan, ()),
    ],
)
def test_replies_are_compared_by_what_they_hold(
    old: Any, new: Any, agrees: bool, largest: float, flips: tuple[Any, ...]
) -> None:
    found = compare_replies(_pair(old, new), Tolerance())
    assert (found.agrees, found.flips) == (agrees, flips)
    assert found.largest == pytest.approx(largest, nan_ok=True)


def test_an_open_inference_reply_is_compared_by_its_outputs() -> None:
    def reply(version: str, value: float) -> dict[str, Any]:
        outputs = [{"name": "out", "datatype": "FP64", "shape": [1], "data": [value]}]
        return {"id": version, "model_name": "m", "model_version": version, "outputs": outputs}

    assert compare_replies(_pair(reply("1.0", 5.0), reply("2.0", 5.0)), Tolerance()).agrees
    assert not compare_replies(_pair(reply("1.0", 5.0), reply("2.0", 6.0)), Tolerance()).agrees


def test_replies_that_are_not_logged_are_compared_by_their_digests() -> None:
    same = _pair(None, None)
    assert compare_replies(same, Tolerance()).agrees
    assert not compare_replies(replace(same, new=replace(same.new, reply_sha256="other")), Tolerance()).agrees
    unknown = replace(same.old, reply_sha256=""), replace(same.new, reply_sha256="")
    assert not compare_replies(Pair(*unknown), Tolerance()).agrees


# Reporting ------------------------------------------------------------------------------------------------------------


def test_a_comparison_counts_agreement_flips_errors_and_latencies() -> None:
    comparison = Comparison("1.0", "2.0")
    for number in range(100):
        odd = {"reply": DOG} if number < 2 else {}
        failed = {"status": 500, "reply": {"code": 500}} if number == 50 else {}
        comparison.add([_prediction(str(number), "1.0", reply=CAT, handler_ms=10.0, input_sha256=str(number % 40))])
        comparison.add(
            [
                _prediction(
                    str(number),
                    "2.0",
                    **{"reply": CAT, "handler_ms": 20.0, "input_sha256": str(number % 40), **odd, **failed},
                )
            ]
        )
    comparison.add([_prediction("alone", "2.0", dropped=5), _prediction("other", "3.0")])
    report = comparison.report()
    assert (report.pairs, report.inputs, report.failed, report.alone) == (100, 40, (0, 1, 0), (0, 1))
    assert (report.agreement.happened, report.agreement.observations) == (97, 99)
    assert report.agreement.lower < 0.97 < report.agreement.upper
    assert report.flips == (("cat", "dog", 2),)
    assert (report.largest, report.largest_key) == (pytest.approx(0.6), "0")
    assert (report.latency[0].p50_ms, report.latency[1].p99_ms) == (10, 20)
    assert report.dropped == 5
    record = json.loads(json.dumps(report.record(), allow_nan=False))
    assert record["flips"] == [{"old": "cat", "new": "dog", "count": 2}]
    assert record["failed"] == {"old": 0, "new": 1, "both": 0}
    assert [point.observations for point in report.points][:4] == [1, 2, 3, 5]


def test_a_log_of_older_handlers_is_named() -> None:
    comparison = Comparison("1.0", "2.0")
    comparison.add([read_line(json.dumps(OLDER).encode()), _prediction("aa", "2.0")])
    assert (comparison.report().older_log, comparison.report().pairs) == (("1.0",), 1)


def test_a_report_of_nothing_has_no_number_that_json_lacks() -> None:
    record = Comparison("1.0", "2.0").report().record()
    assert json.loads(json.dumps(record, allow_nan=False))["agreement"]["rate"] is None


# The handler's own comparison -----------------------------------------------------------------------------------------

HOOK = """
import os
import sys

class TextHandler:
    @staticmethod
    def compare(old, new):
        print("a handler may print", file=sys.stdout)
        if old == "raise":
            raise RuntimeError("no")
        if old == "odd":
            return "yes"
        if old == "exit":
            sys.stderr.write("gone away\\n")
            sys.stderr.flush()
            os._exit(3)
        return old.lower() == new.lower()
"""


def _archive(folder: Path, source: str) -> UnpackedArchive:
    (folder / "text_handler.py").write_text(source, encoding="utf-8")
    return UnpackedArchive(folder, "m", "text_handler.py")


def test_a_handler_compares_in_a_process_of_its_own(tmp_path: Path) -> None:
    archive = _archive(tmp_path, HOOK)
    assert has_hook(archive)
    with hook(archive) as compare:
        comparison = Comparison("1.0", "2.0", compare=compare)
        for key, old, new in (("a", "Yes", "yes"), ("b", "Yes", "no")):
            comparison.add([_prediction(key, "1.0", reply=old), _prediction(key, "2.0", reply=new)])
        assert comparison.report().agreement.happened == 1
        with pytest.raises(HandlerError, match="RuntimeError: no"):
            compare(_pair("raise", "x"))
        with pytest.raises(HandlerError, match="str, not True or False"):
            compare(_pair("odd", "x"))
        with pytest.raises(HandlerError, match="gone away"):
            compare(_pair("exit", "x"))


def test_a_module_may_compare_too_and_one_that_hangs_is_ended(tmp_path: Path) -> None:
    archive = _archive(tmp_path, "import time\ndef compare(old, new):\n    time.sleep(3600)\n")
    with hook(archive, answer_s=0.1) as compare, pytest.raises(HandlerError, match=r"no answer in 0\.1 s"):
        compare(_pair("a", "a"))


@pytest.mark.parametrize(
    ("source", "problem"), [("", "no compare"), ("import missing_module\n", "ModuleNotFoundError")]
)
def test_a_handler_without_a_usable_comparison_is_refused(tmp_path: Path, source: str, problem: str) -> None:
    archive = _archive(tmp_path, source)
    assert not has_hook(archive)
    with pytest.raises(HandlerError, match=problem), hook(archive):
        pass
