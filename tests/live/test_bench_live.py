"""`marsmith bench` on a real server: the figures are those of the requests that were sent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marsmith.cli import main
from marsmith.client.metrics import Traffic
from marsmith.errors import ServerError
from marsmith.loadtest.breakdown import Breakdown, split
from marsmith.project import PROJECT_VARIABLE, Project
from support.live_server import SharedServer

SLEEPY = """
import time

def handle(data, context):
    if data is None:
        return None
    time.sleep(0.02)
    if any(row["body"] in ("bad", b"bad", bytearray(b"bad")) for row in data):
        raise ValueError("bad")
    return [b'{"cat": 0.9}'] * len(data)
"""


@pytest.fixture(scope="module")
def project(shared_server: SharedServer) -> Iterator[Project]:
    with shared_server.serving("sleepy", SLEEPY):
        yield shared_server.project


@pytest.fixture
def folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PROJECT_VARIABLE, str(project.root))
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_text("bad")
    return tmp_path


@pytest.mark.live
def test_closed_and_open_loops_report_what_the_handler_takes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(folder / "good.txt")
    assert (
        main(["bench", "sleepy", "--clients", "1", "--seconds", "1", "--warm-up", "0", "--input", good, "--json"]) == 0
    )
    (closed,) = json.loads(capsys.readouterr().out)
    assert closed["latencyMs"]["p50"] >= 20
    assert closed["requestsPerSecond"] <= 50
    assert closed["requests"] == sum(bucket["requests"] for bucket in closed["histogram"])
    rate = ["--rps", "10", "--seconds", "1", "--warm-up", "0"]
    assert main(["bench", "sleepy:1.0", *rate, "--input", good, "--p99-ms", "0.1"]) == 1
    shown = capsys.readouterr().out
    assert "10 requests/s, poisson arrivals" in shown
    assert re.search(r"^p99 [\d.]+ > 0\.1 ms: not held$", shown, re.MULTILINE)
    assert "0 requests failed: held" in shown


@pytest.mark.live
def test_a_verdict_is_told_whether_or_not_there_is_a_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "bench",
        "sleepy",
        "--clients",
        "1",
        "--seconds",
        "0.5",
        "--warm-up",
        "0",
        "--input",
        str(folder / "good.txt"),
    ]
    assert main(line) == 0
    assert "measured and not judged" in capsys.readouterr().out
    assert main([*line, "--p99-ms", "60000"]) == 0
    assert re.search(r"^p99 [\d.]+ <= 60000 ms: held$", capsys.readouterr().out, re.MULTILINE)
    assert main([*line, "--p99-ms", "1", "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert result["verdict"]["held"] is False
    assert result["verdict"]["checks"][0]["what"] == "p99Ms"


@pytest.mark.live
def test_failures_are_counted_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["--input", str(folder / "good.txt"), "--input", str(folder / "bad.txt")]
    assert main(["bench", "sleepy", "--clients", "1", "--seconds", "2", "--warm-up", "0", *both, "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert result["errors"]["503"] == pytest.approx(result["requests"] / 2, abs=1)


@pytest.mark.live
def test_over_grpc_the_same_model_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--clients", "2", "--seconds", "0.5", "--warm-up", "0", "--grpc", "--json"]
    assert main(["bench", "sleepy", "--input", str(folder / "good.txt"), *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["requests"] >= 2
    assert result["latencyMs"]["p50"] >= 20


@pytest.mark.live
def test_the_breakdown_adds_up_to_what_the_client_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--clients", "4", "--seconds", "1", "--warm-up", "0", "--breakdown", "--json"]
    assert main(["bench", "sleepy", "--input", str(folder / "good.txt"), *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    stages = result["breakdown"]["stagesMs"]
    assert sum(stages.values()) == pytest.approx(result["breakdown"]["meanMs"], rel=0.05)
    # Four clients and one worker: three of four wait, though they come together, for the 20 ms of those before them.
    assert stages["queue"] >= 20


def test_a_model_that_is_not_there_is_an_error_that_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sleepier", "--clients", "1", "--seconds", "0.2", "--warm-up", "0"]) == 2
    assert "sleepier" in capsys.readouterr().err


def _split(**stages: float | None) -> Breakdown:
    values: dict[str, Any] = {"latency_ms": 45.0, "queue_ms": 10.0, **stages}
    seen = Traffic(**values)
    return split(50, seen, batch_size=8, max_batch_delay_ms=100, workers=1)


def test_the_bottleneck_is_what_takes_longest_and_comes_with_the_setting_that_moves_it() -> None:
    infer = _split(decode_ms=5.0, infer_ms=25.0, encode_ms=0.1, batch_items=7.9)
    assert infer.bottleneck[0] == "infer"
    assert "marsmith export" in infer.bottleneck[1]
    assert infer.frontend_ms == pytest.approx(4.9)
    assert infer.lines()[-1].startswith("bottleneck: infer")
    assert _split(decode_ms=25.0, infer_ms=5.0, encode_ms=0.1, batch_items=7.9).bottleneck[0] == "decode"
    waiting = _split(queue_ms=40.0, infer_ms=3.0, batch_items=1.0)
    assert waiting.bottleneck[0] == "batch wait"
    assert "maxBatchDelay" in waiting.bottleneck[1]
    with pytest.raises(ServerError, match="counted no request"):
        split(5, Traffic(), batch_size=1, max_batch_delay_ms=1, workers=1)
