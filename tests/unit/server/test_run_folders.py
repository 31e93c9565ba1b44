"""The folders of a run when a server is started again."""

from __future__ import annotations

from pathlib import Path

from marsmith.project import Project
from marsmith.server import launch


def test_prediction_logs_go_on_and_other_logs_are_put_aside(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for start in range(3):
        logs = launch.prepare_folders(project, project.run / "tmp")
        assert (logs / "ts_log.log").exists() is False
        (logs / "ts_log.log").write_text(f"run {start}")
        project.prediction_logs.mkdir(exist_ok=True)
        with (project.prediction_logs / "m.jsonl").open("a") as log:
            log.write(f"{start}\n")
    assert (project.prediction_logs / "m.jsonl").read_text() == "0\n1\n2\n"
    assert (project.run / "logs.previous" / "ts_log.log").read_text() == "run 1"
