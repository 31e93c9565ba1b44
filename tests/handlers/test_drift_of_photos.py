"""Photos through the real handler into its log, then ``marsmith drift``: darker ones drift, others do not."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from marsmith.cli import main
from support.handler_fixtures import Worker, classifier_folder, write_manifest
from support.pictures import picture
from support.projects import copy_project

BEGIN = 1.7e9
WINDOW = 50
BASELINE = 10 * WINDOW


def _photos(draw: random.Random, count: int, brightest: int) -> list[bytes]:
    colors = [[draw.randrange(brightest) for _ in range(3)] for _ in range(count)]
    return [picture(*color, size=(draw.randrange(20, 60), 30)) for color in colors]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The lines of a log whose photos are as bright as ever, and of one whose last photos are darker."""
    folder = tmp_path_factory.mktemp("photos")
    classifier_folder(folder / "model", prediction_log={"path": str(folder / "log.jsonl"), "sample": 1})
    write_manifest(folder / "model", "image_classifier_handler.py", modelVersion="1.0")
    worker = Worker(folder / "model", "image_classifier_handler.py")
    draw = random.Random(1)
    photos = [*_photos(draw, BASELINE + 2 * WINDOW, 256), *_photos(draw, WINDOW, 90)]
    for start in range(0, len(photos), 25):
        worker.send(*photos[start : start + 25])
    worker.service._entry_point.__self__._prediction_log.flush()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(photos)
    # As if they had come one in ten seconds.
    spread = [line | {"time": BEGIN + 10 * number} for number, line in enumerate(lines)]
    return {"same": spread[:-WINDOW], "darker": spread[: -2 * WINDOW] + spread[-WINDOW:]}


@pytest.mark.parametrize("kind", ["same", "darker"])
def test_darker_photos_drift_and_the_same_ones_do_not(
    kind: str,
    logged: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = copy_project(tmp_path / "project")
    project.prediction_logs.mkdir(parents=True)
    log = project.prediction_logs / "tiny.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in logged[kind]), encoding="utf-8")
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("TZ", "UTC")
    end = 10 * (BASELINE - 1)
    period = f"2023-11-14T22:13:20+00:00..{_time(BEGIN + end + 5)}"
    options = ["--window", str(WINDOW), "--window-time", "1m", "--baseline", period]
    assert main(["drift", "tiny", *options, "--html", "drift.html", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["baseline"]["windows"] == 10
    statistics = {one["statistic"] for one in found["drift"]["statistics"]}
    assert statistics >= {
        "class",
        "confidence",
        "margin",
        "entropy",
        "brightness",
        "contrast",
        "width",
        "bytes",
        "status",
    }
    drifted = set(found["drift"]["drifted"])
    assert ("brightness" in drifted) == (kind == "darker")
    assert drifted.isdisjoint({"width", "height", "status"})
    assert kind == "darker" or not drifted


def _time(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()
