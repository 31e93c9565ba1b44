"""``marsmith log``: what a model has answered, and how far two versions agree, as text, JSON and a page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Any

import pytest

from marsmith.cli import main
from marsmith.predictions import LogFollower
from marsmith.predictions.forget import forget
from marsmith.predictions.log import files_of
from marsmith.project import Project
from marsmith_handler.log_files import Rotation, append
from marsmith_handler.log_writer import LogWriter
from support.projects import copy_project

CAT, DOG = {"cat": 0.9, "dog": 0.1}, {"cat": 0.2, "dog<b>": 0.8}


def _line(key: str, version: str, reply: Any, **other: Any) -> str:
    fields = {"schema": 2, "time": 1.5e9, "key": key, "model": "pets", "version": version, "status": 200}
    fields |= {"input_sha256": key, "reply": reply, "reply_sha256": "x", "handler_ms": 12.5, "reply_bytes": 9}
    return json.dumps({**fields, **other}) + "\n"


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = copy_project(tmp_path / "project")
    log = project.run / "logs" / "predictions" / "pets.jsonl"
    log.parent.mkdir(parents=True)
    lines = [_line(f"r{n}", version, CAT) for n in range(30) for version in ("1.0", "2.0")]
    lines += [_line("odd", "1.0", CAT), _line("odd", "2.0", DOG, handler_ms=99.0), "damaged\n"]
    lines += [_line("other", "1.0", CAT, model="plants")]
    log.write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(project.root)
    return project


def test_the_last_predictions_are_shown(logged: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "pets", "-n", "2"]) == 0
    shown = capsys.readouterr()
    assert [line.split()[2:4] for line in shown.out.splitlines()[1:]] == [["odd", "1.0"], ["odd", "2.0"]]
    assert "1 damaged lines" in shown.err
    assert main(["log", "pets", "--version", "2.0", "-n", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 31
    assert (found[-1]["key"], found[-1]["reply"]) == ("odd", DOG)


def test_two_versions_are_compared_as_text_json_and_a_page(
    logged: Project, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert main(["log", "pets", "--compare", "1.0", "2.0", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "96.77% of 31" in shown
    assert shown.splitlines()[-1].split() == ["cat", "dog<b>", "1"]
    assert main(["log", "pets", "--compare", "1.0", "2.0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["agreement"]["happened"] == 30
    assert record["agreement"]["lower"] < 0.96 < record["agreement"]["upper"]
    assert (record["pairs"], record["damaged"], record["latency"]["new"]["p99_ms"]) == (31, 1, 99.0)

    text = page.read_text(encoding="utf-8")
    charts = text.split("<svg")[1:]
    assert len(charts) == 3
    for chart in charts:
        ElementTree.fromstring("<svg" + chart.partition("</svg>")[0] + "</svg>")
    assert "dog&lt;b&gt;" in text
    assert "<b>" not in text
    assert "//" not in text.replace("http://www.w3.org/2000/svg", ""), "the page loads nothing"


def test_the_handler_of_the_new_version_decides_if_it_compares(
    logged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (
        "class PetsHandler:\n    def handle(self, data, context):\n        return data\n\n"
        "    @staticmethod\n    def compare(old, new):\n        return True\n"
    )
    folder = logged.root / "handlers"
    (folder / "pets_handler.py").write_text(source, encoding="utf-8")
    assert main(["pack", "--model-name", "pets", "--version", "2.0", "--handler", str(folder / "pets_handler.py")]) == 0
    Path("pets.mar").rename(logged.model_store / "pets-2.0.mar")
    capsys.readouterr()
    assert main(["log", "pets", "--compare", "1.0", "2.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agreement"]["happened"] == 31


def test_no_code_of_an_archive_runs_that_the_project_does_not_admit(
    logged: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = {"model": {"modelName": "pets", "modelVersion": "2.0", "handler": "pets_handler.py"}}
    with zipfile.ZipFile(logged.model_store / "pets-2.0.mar", "w") as foreign:
        foreign.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        foreign.writestr(
            "pets_handler.py", f"open({str(logged.root / 'ran')!r}, 'w')\ndef compare(old, new): return True"
        )
    logged.settings_file.write_text("archives: ours\n", encoding="utf-8")
    assert main(["log", "pets", "--compare", "1.0", "2.0"]) == 1
    assert "pets-2.0.mar" in capsys.readouterr().err
    assert not (logged.root / "ran").exists()
    logged.settings_file.write_text("archives: any\n", encoding="utf-8")
    assert main(["log", "pets", "--compare", "1.0", "2.0"]) == 0
    assert (logged.root / "ran").exists()


def test_lines_are_forgotten_by_their_key_and_by_their_age(logged: Project, capsys: pytest.CaptureFixture[str]) -> None:
    log = logged.prediction_logs / "pets.jsonl"
    moved = log.with_name("pets.jsonl.1")
    moved.write_text(_line("odd", "1.0", CAT, time=1.4e9) + _line("old", "1.0", CAT, time=1.4e9), encoding="utf-8")
    assert main(["log", "forget", "pets", "--request-id", "odd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": 4}
    assert "odd" not in log.read_text() + moved.read_text()
    assert main(["log", "forget", "pets", "--before", "2017-01-01"]) == 0
    assert capsys.readouterr().out.startswith("1 lines removed")
    assert moved.read_text() == ""
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert len(keys) == 61
    assert keys[-1] == "other", "another model's lines stay"


def test_no_line_is_lost_that_a_worker_writes_while_others_are_forgotten(tmp_path: Path) -> None:
    log, count = tmp_path / "pets.jsonl", 300
    writer = LogWriter(log, Rotation(1 << 30))
    for number in range(count):
        writer.add(lambda _, number=number: _line(f"{number % 2}-{number}", "1.0", CAT).encode(), 1)  # type: ignore[misc]
    removed = 0
    while not writer.flush(timeout_s=0.001):
        removed += forget(log, lambda each: each.key.startswith("0"))
    removed += forget(log, lambda each: each.key.startswith("0"))
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert removed == count // 2
    assert keys == [f"1-{number}" for number in range(1, count, 2)]


def test_compressed_files_are_read_and_forgotten_too(tmp_path: Path) -> None:
    log, rotation = tmp_path / "pets.jsonl", Rotation(max_bytes=900, files=4)
    for number in range(20):
        append(log, _line(f"{number % 2}-{number}", "1.0", CAT).encode(), rotation)
    names = [path.name for path in files_of(log)]
    assert names == ["pets.jsonl.4.gz", "pets.jsonl.3.gz", "pets.jsonl.2.gz", "pets.jsonl.1", "pets.jsonl"]
    keys = [each.key for each in LogFollower(log).each()]
    assert keys == sorted(keys, key=lambda key: int(key[2:])), "oldest first"
    ages = [path.stat().st_mtime_ns for path in files_of(log)]
    assert forget(log, lambda each: each.key.startswith("0")) == sum(key.startswith("0") for key in keys)
    assert [each.key for each in LogFollower(log).each()] == [key for key in keys if key.startswith("1")]
    assert [path.stat().st_mtime_ns for path in files_of(log)] == ages, "the retention is not prolonged"


def test_who_follows_a_log_loses_no_line_if_it_is_moved_aside_and_older_ones_are_compressed(tmp_path: Path) -> None:
    log, rotation = tmp_path / "pets.jsonl", Rotation(max_bytes=900, files=3)
    follower, found = LogFollower(log), []
    for number in range(20):
        append(log, _line(str(number), "1.0", CAT).encode(), rotation)
        found += [each.key for each in follower.read()]
    assert found == [str(number) for number in range(20)]


def test_a_damaged_compressed_file_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    log = tmp_path / "pets.jsonl"
    log.write_text(_line("r1", "1.0", CAT))
    (tmp_path / "pets.jsonl.2.gz").write_bytes(b"no gzip")
    follower = LogFollower(log)
    assert [each.key for each in follower.each()] == ["r1"]
    assert follower.damaged == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["forget", "pets"], "either --request-id or --before"),
        (["forget", "pets", "--before", "soon"], "'soon' is not a date"),
        (["pets", "--before", "2026-11-01"], "say what to forget"),
        (["pets", "pets"], "'pets' is not an order"),
        (["plants"], "no prediction log"),
        (["pets", "--html", "x.html"], "--html shows a comparison"),
        (["pets", "--compare", "1.0", "1.0"], "with itself"),
        (["pets", "--compare", "1.0", "3.0"], "no reply of pets 3.0"),
        (["pets", "--compare", "1.0", "2/0"], "2/0"),
        (["pets", "-n", "0"], "-n must be at least 1"),
        (["../x"], "not a model name"),
        (["pets", "--compare", "1.0", "2.0", "--html", "missing/x.html"], "cannot write missing/x.html"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(
    logged: Project, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert main(["log", *arguments]) == 2
    assert problem in capsys.readouterr().err.splitlines()[0]
