"""Old lines go from a log also if no worker writes to it, as its archive's settings say."""

from __future__ import annotations

import json
import time
from pathlib import Path

from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.archive.write import write_archive
from marsmith.monitoring.retention import DAY_S, RetentionDuty
from marsmith.project import Project
from support.projects import copy_project


def _archive(project: Project, name: str, log: str, days: float | None) -> None:
    keep = "" if days is None else f"\n    keep_days: {days}"
    config = f"handler:\n  prediction_log:\n    path: {log}{keep}\n"
    members = [
        Member("h.py", b"def handle(data, context):\n    return data\n"),
        Member("model-config.yaml", config.encode()),
    ]
    manifest = Manifest(model_name=name, model_version="1.0", handler="h.py", config_file="model-config.yaml")
    write_archive(manifest, members, project.model_store / f"{name}-1.0.mar")


def _log(project: Project, name: str, *ages_days: float) -> Path:
    path = project.run / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "schema": 1,
            "time": time.time() - age * DAY_S,
            "model": "m",
            "version": "1.0",
            "status": 200,
            "input_sha256": "x",
        }
        for age in ages_days
    ]
    path.write_text("".join(json.dumps({**line, "reply": None}) + "\n" for line in lines))
    return path


def test_lines_older_than_their_archive_says_are_removed(tmp_path: Path) -> None:
    project, told = copy_project(tmp_path / "project"), list[str]()
    _archive(project, "short", "short.jsonl", 2)
    _archive(project, "always", "always.jsonl", None)
    short, always = _log(project, "short.jsonl", 5, 3, 1), _log(project, "always.jsonl", 400)
    duty = RetentionDuty(project, told.append)
    duty.tick()
    assert len(short.read_text().splitlines()) == 1
    assert len(always.read_text().splitlines()) == 1
    assert told == [f"2 lines older than 2 days removed from {short}"]
    duty.tick()
    assert len(told) == 1


def test_of_two_versions_with_one_log_the_longer_time_holds(tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    _archive(project, "a", "common.jsonl", 2)
    _archive(project, "b", "common.jsonl", 10)
    log = _log(project, "common.jsonl", 20, 5, 1)
    RetentionDuty(project, lambda _: None).tick()
    assert len(log.read_text().splitlines()) == 2
