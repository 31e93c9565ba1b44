"""The log of predictions: what identifies a request at all versions, which requests it has, and that none waits."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from marsmith_handler.batch import Slot
from marsmith_handler.log_files import Rotation, append
from marsmith_handler.log_writer import LogWriter
from marsmith_handler.prediction_log import LARGEST_REQUEST, PredictionLog, Served, is_sampled, key_of, summary_of
from marsmith_handler.replies import encode_reply
from marsmith_handler.settings import HandlerSettings, read_settings
from support.handler_fixtures import CLASSES, Worker, classifier_folder, write_manifest
from support.pictures import picture

V2 = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aGVsbG8="]}


def _worker(folder: Path, log: Path | None, version: str = "1.0", **settings: Any) -> Worker:
    block = {"prediction_log": {"path": str(log), **settings}} if log else {}
    classifier_folder(folder, **block)
    write_manifest(folder, "image_classifier_handler.py", modelVersion=version)
    return Worker(folder, "image_classifier_handler.py")


def _log_of(worker: Worker) -> PredictionLog:
    log: PredictionLog = worker.service._entry_point.__self__._prediction_log
    return log


def _lines(worker: Worker, log: Path) -> list[dict[str, Any]]:
    _log_of(worker).flush()
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _slot(fields: dict[str, Any], headers: dict[str, Any] | None = None) -> Slot:
    slot = Slot(0, "torchserve's", fields, headers or {})
    slot.open(HandlerSettings())
    return slot


def _v2(given: str) -> dict[str, Any]:
    return {"body": json.dumps({"id": given, "inputs": [V2]}).encode()}


def test_a_line_describes_request_reply_and_time(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "predictions.jsonl"
    worker = _worker(tmp_path / "model", log, sample=1)
    photo = picture(200, 10, 10)
    worker.send(photo, b"no picture", headers={"X-Request-Id": "abc"})
    good, bad = _lines(worker, log)
    assert (good["schema"], good["key"], good["key_from"]) == (3, "abc", "x-request-id")
    assert (good["model"], good["version"], good["status"], good["shadow"]) == ("tiny", "1.0", 200, False)
    assert (good["input_bytes"], max(good["reply"], key=good["reply"].get)) == (len(photo), "red")
    assert good["items"][0]["shape"] == [3, 16, 16]
    assert good["handler_ms"] > 0
    assert (good["batch"], good["dropped"]) == (2, 0)
    assert (bad["status"], bad["reply"]["type"], bad["items"]) == (415, "UnsupportedMediaType", [{}])
    (watched,) = good["watched"]
    assert (watched["class"], watched["confidence"]) == ("red", pytest.approx(good["reply"]["red"]))
    assert watched["margin"] == pytest.approx(good["reply"]["red"] - sorted(good["reply"].values())[-2])
    assert (watched["width"], watched["height"], watched["bytes"]) == (40, 30, len(photo))
    assert watched["brightness"] == pytest.approx((0.299 * 200 + 0.701 * 10) / 255, abs=0.02)
    assert watched["contrast"] < 0.05
    assert (bad["watched"], good["request"]) == ([], None)


def test_the_same_request_has_the_same_key_at_all_versions_whatever_way_it_comes() -> None:
    image = b"\x89PNG"
    assert key_of(_slot({"body": image}, {"X-Request-ID": "r1"})) == ("r1", "x-request-id")
    over_grpc = _slot({"data": image, "x-request-id": b"r1", "x-marsmith-log": b"1", "x-marsmith-shadow": b"1"})
    assert key_of(over_grpc) == ("r1", "x-request-id")
    assert (over_grpc.marks.log, over_grpc.marks.shadow, list(over_grpc.fields)) == (True, True, ["data"])
    assert len(over_grpc.requests) == 1
    assert key_of(_slot(_v2("theirs"))) == ("theirs", "id")
    assert key_of(_slot({"body": image})) == key_of(_slot({"data": image}))
    assert key_of(_slot({"body": image}))[1] == "input"
    assert key_of(_slot({"body": image}, {"x-request-id": "x" * 5_000}))[0] == "x" * 128


def test_an_id_of_the_open_inference_protocol_may_carry_marks_that_its_sender_never_sees() -> None:
    marked = _slot(_v2("marsmith-log/r1/theirs"))
    assert (key_of(marked), marked.marks.log, marked.marks.shadow) == (("r1", "x-request-id"), True, False)
    copy = _slot(_v2("marsmith-shadow/r1/theirs"))
    assert (key_of(copy), copy.marks.log, copy.marks.shadow) == (("r1", "x-request-id"), True, True)
    assert marked.envelope is not None
    assert marked.envelope.v2_id == "theirs"
    nameless = _slot(_v2("marsmith-log/r1/"))
    assert nameless.envelope is not None
    assert (nameless.envelope.v2_id, nameless.marks.request_id) == (None, "r1")
    assert _slot(_v2("x" * 256)).marks.log is False


def test_the_fields_of_a_form_are_no_marks_where_a_front_has_given_an_id() -> None:
    slot = _slot({"x-marsmith-log": b"1"}, {"x-request-id": "r1"})
    assert (slot.marks.log, list(slot.fields)) == (False, ["x-marsmith-log"])


def test_two_versions_log_the_same_requests(tmp_path: Path) -> None:
    keys = []
    for version in ("1.0", "2.0"):
        log = tmp_path / f"{version}.jsonl"
        worker = _worker(tmp_path / version, log, version, sample=0.25)
        for number in range(60):
            worker.send(picture(9, 9, 200), headers={"x-request-id": f"request-{number}"})
        keys.append([line["key"] for line in _lines(worker, log)])
    assert keys[0] == keys[1]
    assert 5 < len(keys[0]) < 25
    assert all(is_sampled(key, 0.5) for key in keys[0]), "a larger sample holds the smaller one"


def test_a_request_may_ask_for_its_line_without_a_log_in_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LOCATION", str(tmp_path / "logs"))
    worker = _worker(tmp_path / "model", None)
    log = tmp_path / "logs" / "predictions" / "tiny.jsonl"
    worker.send(picture(9, 9, 200), headers={"x-request-id": "quiet"})
    assert not _lines(worker, log)
    worker.send(picture(9, 9, 200), headers={"x-request-id": "asked", "x-marsmith-log": "1"})
    worker.send([("data", "", picture(9, 9, 200)), ("x-request-id", "", b"grpc"), ("x-marsmith-log", "", b"1")])
    assert [line["key"] for line in _lines(worker, log)] == ["asked", "grpc"]
    # One reply, not a list: a mark is not a second picture.
    assert set(_lines(worker, log)[1]["reply"]) == set(CLASSES)


def test_no_line_is_written_where_the_folder_of_logs_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOG_LOCATION", raising=False)
    worker = _worker(tmp_path / "model", None)
    assert worker.send(picture(9, 9, 200), headers={"x-marsmith-log": "1"})[0].status == 200
    assert worker.service._entry_point.__self__._prediction_log is None
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_log_stays_within_its_size(tmp_path: Path) -> None:
    log = tmp_path / "predictions.jsonl"
    worker = _worker(tmp_path / "model", log, sample=1, max_bytes=4_000)
    for _ in range(20):
        worker.send(picture(9, 9, 200), b"no picture")
    _lines(worker, log)
    assert log.stat().st_size <= 4_000
    assert log.with_name("predictions.jsonl.1").stat().st_size <= 4_000


def test_a_log_that_cannot_be_written_hurts_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "predictions.jsonl"
    worker = _worker(tmp_path / "model", log, sample=1)
    log.mkdir()
    with caplog.at_level(logging.WARNING):
        assert [reply.status for reply in worker.send(picture(9, 9, 200), picture(9, 9, 200))] == [200, 200]
        _log_of(worker).flush()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["the prediction log cannot be written"]


def test_a_handler_decides_what_a_line_keeps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def redact(record: dict[str, Any]) -> dict[str, Any]:
        if record["reply"] == {"name": "nobody"}:
            raise ValueError("cannot be redacted")
        return {**record, "reply": None}

    log = tmp_path / "predictions.jsonl"
    kept = PredictionLog(1.0, LogWriter(log, Rotation(10_000)), redact)
    for name in ("somebody", "nobody"):
        kept.add(_slot({"body": b"x"}), encode_reply({"name": name}), Served("m", "1.0", 1.0, 1))
    kept.flush()
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["reply"], line["status"]) == (None, 200)
    assert "cannot be redacted" in caplog.text


def test_a_reply_never_waits_for_the_log_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "predictions.jsonl"
    writer, held, began = LogWriter(log, Rotation(10_000), most=3, most_bytes=100), threading.Event(), threading.Event()

    def stuck(dropped: int) -> bytes:
        began.set()
        held.wait()
        return b"first\n"

    writer.add(stuck, 1)
    began.wait()
    writer.add(lambda dropped: b"too large\n", 200)
    for _ in range(5):
        writer.add(lambda dropped: f"dropped {dropped}\n".encode(), 1)
    assert not writer.flush(timeout_s=0.01), "the thread that writes is stuck, and all calls have returned"
    held.set()
    assert writer.flush()
    assert log.read_text() == "first\n" + "dropped 3\n" * 3


def test_a_line_that_a_killed_worker_left_half_written_spoils_no_other(tmp_path: Path) -> None:
    log = tmp_path / "predictions.jsonl"
    log.write_bytes(b'{"half')
    writer = LogWriter(log, Rotation(10_000))
    writer.add(lambda dropped: b"{}\n", 1)
    writer.flush()
    assert log.read_bytes() == b'{"half\n{}\n'


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_arrays_are_described_as_tensors_are(dtype: torch.dtype) -> None:
    tensor = torch.arange(12).reshape(3, 4).to(dtype)
    expected = {"shape": [3, 4], "mean": 5.5, "std": 3.452053}
    assert summary_of(tensor) == expected
    assert summary_of(np.arange(12, dtype=np.float32).reshape(3, 4)) == expected
    assert summary_of("text") == summary_of(np.empty(0)) == {}


def test_the_whole_request_is_logged_only_if_asked_for_and_redaction_sees_it(tmp_path: Path) -> None:
    log = tmp_path / "predictions.jsonl"
    worker = _worker(tmp_path / "model", log, sample=1, bodies=True)
    photo = picture(9, 9, 200)
    worker.send(photo)
    (line,) = _lines(worker, log)
    assert base64.b64decode(next(iter(line["request"].values()))["b64"]) == photo

    kept = PredictionLog(
        1.0, LogWriter(log, Rotation(10_000)), lambda record: {**record, "request": "removed"}, bodies=True
    )
    kept.add(_slot({"body": b"secret"}), encode_reply({}), Served("m", "1.0", 1.0, 1))
    kept.add(_slot({"body": b"x" * (LARGEST_REQUEST + 1)}), encode_reply({}), Served("m", "1.0", 1.0, 1))
    kept.flush()
    assert "c2VjcmV0" not in log.read_text()
    assert json.loads(log.read_text().splitlines()[1])["request"] == "removed"


def test_a_request_that_cannot_be_described_is_logged_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def watch(request: Any, item: Any, reply: Any) -> dict[str, float]:
        raise ValueError("no idea")

    log = tmp_path / "predictions.jsonl"
    kept = PredictionLog(1.0, LogWriter(log, Rotation(10_000)), watch=watch)
    for _ in range(2):
        slot = _slot({"body": b"x"})
        slot.items, slot.replies = [None], [{}]
        kept.add(slot, encode_reply({}), Served("m", "1.0", 1.0, 1))
    kept.flush()
    assert [json.loads(line)["watched"] for line in log.read_text().splitlines()] == [[], []]
    assert caplog.text.count("no idea") == 1


def _aged(path: Path, name: str, time_s: float, rotation: Rotation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: time_s)
    append(path, json.dumps({"time": time_s, "name": name}).encode() + b"\n", rotation)
    os.utime(path, (time_s, time_s))


def _names(path: Path) -> list[str]:
    content = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return [json.loads(line)["name"] for line in content.splitlines()]


def test_a_file_is_moved_aside_by_age_and_older_ones_are_compressed_then_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, rotation = tmp_path / "p.jsonl", Rotation(10_000, files=3, max_age_s=10, keep_s=100)
    for time_s, name in ((0, "a"), (9, "b"), (11, "c"), (22, "d"), (33, "e")):
        _aged(log, name, time_s, rotation, monkeypatch)
    found = {path.name: _names(path) for path in tmp_path.iterdir()}
    assert found == {"p.jsonl": ["e"], "p.jsonl.1": ["d"], "p.jsonl.2.gz": ["c"], "p.jsonl.3.gz": ["a", "b"]}
    _aged(log, "f", 130, rotation, monkeypatch)
    found = {path.name: _names(path) for path in tmp_path.iterdir()}
    assert found == {"p.jsonl": ["f"], "p.jsonl.1": ["e"]}, "the last line of the others is more than 100 s old"


def test_without_an_age_to_move_aside_a_file_ends_when_its_lines_are_too_old(tmp_path: Path) -> None:
    log = tmp_path / "predictions.jsonl"
    worker = _worker(tmp_path / "model", log, sample=1, keep_days=0.5, files=2)
    log.write_text('{"time": 1.0}\n')
    os.utime(log, (1, 1))
    worker.send(picture(9, 9, 200))
    assert len(_lines(worker, log)) == 1
    assert {path.name for path in tmp_path.glob("*.jsonl*")} == {"predictions.jsonl", "predictions.jsonl.lock"}


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"files": 0}, "prediction_log.files is 0, not a positive whole number"),
        ({"keep_days": -1}, "prediction_log.keep_days is -1, not a positive number"),
        ({"rotate_hours": "1h"}, "prediction_log.rotate_hours is '1h', not a positive number"),
        ({"bodies": "yes"}, "prediction_log.bodies is 'yes', not true or false"),
    ],
)
def test_wrong_settings_of_the_log_are_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(RuntimeError, match=problem):
        read_settings({"prediction_log": {"path": "p.jsonl", **settings}})
