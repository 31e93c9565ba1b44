"""The front as a rollout uses it: its log of answers does not grow without end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsmith.deploy.traffic.envoy import EnvoyFront
from marsmith.server.front import access_log, admin
from marsmith.server.front.bootstrap import ANSWERS_FILE

_ABSENT = ("share", "shadow", "grpc_status", "item", "failed", "second_ms", "limit_ms", "attempts", "duration_ms")


def line(number: int) -> str:
    told = {"at": f"{number}.0", "model": "m", "version": "", "api": "rest", "draw": "", "request_id": "id"}
    return json.dumps({**told, "status": 200, **dict.fromkeys(_ABSENT), "flags": "-"}) + "\n"


def test_a_log_above_its_limit_begins_anew_when_it_has_been_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(admin, "ask", lambda folder, what, method: asked.append(what))
    monkeypatch.setattr(access_log, "LARGEST_BYTES", 3 * len(line(0)))
    log, front = tmp_path / ANSWERS_FILE, EnvoyFront(tmp_path)
    times: list[float]
    times, position = [], 0
    for number in range(8):
        with log.open("a") as file:
            file.write(line(number))
        answers, position = front.answers(position)
        times += [each.at_s for each in answers]
    # The fourth and the eighth line are the first ones above the limit.
    assert asked == ["/reopen_logs", "/reopen_logs"]
    assert times == list(range(8))
    # One older log stays.
    assert sorted(path.name for path in tmp_path.glob(f"{ANSWERS_FILE}*")) == [f"{ANSWERS_FILE}.1"]
    assert log.with_name(f"{ANSWERS_FILE}.1").stat().st_size == 4 * len(line(0))
