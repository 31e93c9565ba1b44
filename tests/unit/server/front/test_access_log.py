"""The log of answers, read while Envoy writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith.server.front import admin
from marsmith.server.front.access_log import Answer, end_of, read_answers, rotate

NOTHING = dict.fromkeys(("share", "shadow", "grpc_status", "item", "failed", "second_ms", "limit_ms"))
SECOND = {"attempts": 2, "limit_ms": 1000}


def line(number: int = 0, **facts: Any) -> bytes:
    told = {"at": "1795834415.212080", "model": "m", "version": "2.0", "api": "rest", "draw": "hash", "status": 200}
    told |= {"request_id": f"id-{number}", "attempts": 1, "duration_ms": 7, "flags": "-", **NOTHING, **facts}
    return json.dumps(told).encode() + b"\n"


def read_one(tmp_path: Path, **facts: Any) -> Answer:
    (tmp_path / "log").write_bytes(line(**facts))
    ((answer,), _) = read_answers(tmp_path / "log", 0)
    return answer


def test_a_line_is_what_became_of_a_request(tmp_path: Path) -> None:
    answer = read_one(tmp_path, share=500, grpc_status=0, api="grpc", item="422", shadow="default")
    assert answer == Answer(
        1795834415.21208, "m", "2.0", "grpc", 500, "hash", "id-0", 200, 0, 422, 1, "", 7, "default", "-"
    )
    assert answer.was_refused
    # Drawn by its own id: it has no user.
    assert read_one(tmp_path, draw="id-0").user == ""


@pytest.mark.parametrize(
    ("facts", "failed", "alone", "both"),
    [
        ({}, False, False, False),
        ({"status": 503}, True, True, False),
        ({**SECOND, "failed": True}, False, True, False),
        ({**SECOND, "failed": True, "status": 500}, True, False, True),
        ({**SECOND, "second_ms": 1001}, False, True, False),
        # The connection broke: TorchServe restarts, and the canary is not to blame.
        ({**SECOND, "second_ms": 20}, False, False, False),
        # No shield: all attempts were for the canary.
        ({"attempts": 3}, False, False, False),
        ({"attempts": 3, "status": 500}, True, True, False),
        ({"version": "", "status": 500}, True, False, False),
        ({"version": "", "attempts": 9}, False, False, False),
        ({"grpc_status": 13}, True, True, False),
        ({"grpc_status": 3}, False, False, False),
        ({"grpc_status": 0, "item": "507"}, True, True, False),
        ({"grpc_status": 0, "item": "422"}, False, False, False),
        ({"status": 422}, False, False, False),
        # The client did not wait.
        ({"status": 0, "flags": "DC"}, False, False, False),
    ],
)
def test_what_is_evidence_against_a_canary(
    tmp_path: Path, facts: dict[str, Any], failed: bool, alone: bool, both: bool
) -> None:
    answer = read_one(tmp_path, **facts)
    assert (answer.reply_failed, answer.failed_on_canary_alone) == (failed, alone)
    assert (answer.was_repeated and answer.reply_failed) == both
    assert answer.was_answered == (answer.status != 0)


@given(st.lists(st.integers(1, 400), max_size=20), st.data())
def test_each_answer_is_read_once_whatever_is_written_meanwhile(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "answers.log"
    whole = b"".join(line(number) for number in range(8))
    found, offset, written = [], 0, 0
    for piece in [*pieces, len(whole)]:
        with path.open("ab") as file:
            file.write(whole[written : written + piece])
        written += piece
        more, offset = read_answers(path, offset)
        found += [answer.request_id for answer in more]
    assert found == [f"id-{number}" for number in range(8)]


def test_no_answer_is_lost_or_read_twice_when_the_log_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.log"
    assert read_answers(path, 0) == ([], 0)
    path.write_bytes(line(1) + line(2))
    first, offset = read_answers(path, 0)
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(admin, "ask", lambda folder, what, method: asked.append((folder, what, method)))
    assert not rotate(path, 10_000)
    assert rotate(path, 100)
    assert asked == [(tmp_path, "/reopen_logs", "POST")]
    # Envoy still writes into the older file until it has opened the new one.
    with path.with_name("answers.log.1").open("ab") as older:
        older.write(line(3))
    path.write_bytes(line(4))
    second, offset = read_answers(path, offset)
    path.write_bytes(path.read_bytes() + line(5))
    third, _ = read_answers(path, offset)
    assert [each.request_id for each in (*first, *second, *third)] == [f"id-{number}" for number in range(1, 6)]


def test_a_reader_that_comes_back_after_the_log_began_anew_reads_whole_lines(tmp_path: Path) -> None:
    """Somebody else has put the log aside, and the new one is longer than what was read of the old one."""
    path = tmp_path / "answers.log"
    path.write_bytes(line(1) + line(2))
    _, offset = read_answers(path, 0)
    path.rename(tmp_path / "answers.log.1")
    path.write_bytes(b"".join(line(number, share=number) for number in range(10_003, 10_010)))
    answers, offset = read_answers(path, offset)
    assert [each.share for each in answers] == list(range(10_003, 10_010))
    assert offset == end_of(path) == path.stat().st_size
    with path.open("ab") as file:
        file.write(line(4)[:-10])
    assert end_of(path) == offset
    assert end_of(tmp_path / "none") == 0
