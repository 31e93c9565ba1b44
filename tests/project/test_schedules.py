"""The texts for schedulers in docs/how-to/batch.md: units, manifests and a DAG, judged by what reads them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from marsmith.cli import verb_parser
from support.batches import light_archive, rows_of, write_inputs
from support.documentation import Block, read_page
from support.long_tests import long
from support.projects import REPOSITORY

PAGE = read_page(REPOSITORY / "docs" / "how-to" / "batch.md")
AIRFLOW = REPOSITORY / ".venv-airflow" / "bin"


def blocks(language: str) -> list[Block]:
    return [block for block in PAGE.blocks if block.language == language]


def check_arguments(arguments: list[str]) -> None:
    """Parse what a scheduler gives to ``marsmith batch``; ends the test if that is wrong."""
    parsed = verb_parser("batch").parse_args(arguments)
    assert parsed.to


@pytest.mark.parametrize("kind", ["Job", "CronJob"])
@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_a_manifest_is_valid_strictly_and_its_arguments_are_too(kind: str, version: str) -> None:
    (manifest,) = (found for block in blocks("yaml") if (found := yaml.safe_load(block.text))["kind"] == kind)
    kubernetes_validate.validate(manifest, version, strict=True)
    job = manifest["spec"] if kind == "Job" else manifest["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    check_arguments(container["args"])
    assert container["command"][:2] == ["sh", "-c"]
    # What the shell makes of an exit code.
    for code, seen in ((0, 0), (3, 0), (1, 1)):
        script = f"marsmith() {{ return {code}; }}; {container['command'][2]}"
        assert subprocess.run(["sh", "-c", script, "a", "b"], check=False).returncode == seen


def test_a_typing_error_in_a_manifest_is_found() -> None:
    manifest = yaml.safe_load(blocks("yaml")[0].text)
    manifest["spec"]["completionsMode"] = manifest["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_the_units_are_what_systemd_accepts(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    service, timer = blocks("ini")
    command = next(line for line in service.text.splitlines() if line.startswith("ExecStart="))
    check_arguments(command.partition(" batch ")[2].split())
    # The program of the page is not on this machine.
    here = service.text.replace("/srv/models/.venv/bin/marsmith", shutil.which("true") or "/bin/true")
    (tmp_path / "marsmith-batch.service").write_text(here.replace("WorkingDirectory=/srv/models", "WorkingDirectory=/"))
    (tmp_path / "marsmith-batch.timer").write_text(timer.text)
    units = [str(tmp_path / f"marsmith-batch.{kind}") for kind in ("service", "timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    named = [line for line in done.stderr.splitlines() if "marsmith-batch" in line]
    assert (done.returncode, named) == (0, []), done.stderr


@long("batch")
def test_a_real_airflow_runs_the_dag_and_a_second_run_of_the_day_does_nothing(tmp_path: Path) -> None:
    if not (AIRFLOW / "airflow").exists():
        pytest.skip("Airflow is not installed: make heavy")
    light_archive(tmp_path / "models" / "light")
    photos = write_inputs(tmp_path / "photos" / "2026-11-05", [b"a", b"bad", b"c"])
    for path in photos.iterdir():
        os.utime(path, (1_793_800_000, 1_793_800_000))
    (dag,) = (block for block in blocks("python") if "airflow" in block.text)
    text = dag.text.replace("/srv/models/.venv/bin/marsmith", str(REPOSITORY / ".venv" / "bin" / "marsmith"))
    text = text.replace("efficientnet_lite0", "./light").replace("/srv/", f"{tmp_path}/")
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "score.py").write_text(text)
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment |= {"AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"), "PATH": f"{AIRFLOW}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH")

    def airflow(*arguments: str) -> str:
        command = [str(AIRFLOW / "airflow"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    airflow("db", "migrate")
    airflow("dags", "test", "score_photos", "2026-11-05")
    answers = tmp_path / "answers" / "2026-11-05"
    before = {path.name: path.stat().st_mtime_ns for path in answers.iterdir()}
    assert [row["status"] for row in rows_of(answers)] == [200, 422, 200]
    assert "all parts were there" in airflow("dags", "test", "score_photos", "2026-11-05")
    assert {path.name: path.stat().st_mtime_ns for path in answers.iterdir()} == before
