"""Labels that come later: they join by request id, count once, and give each version's accuracy at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from marsmith.cli import main
from marsmith.monitoring.exporter.drift import DriftSource
from marsmith.predictions.labels import LabelledPredictions, read_labels
from marsmith.project import Project
from support.projects import copy_project

CAT = {"cat": 0.9, "dog": 0.1}


def _line(key: str, version: str, top: str | None = "cat", **other: Any) -> str:
    fields = {"schema": 3, "time": 1.5e9, "key": key, "model": "pets", "version": version, "status": 200}
    fields |= {
        "input_sha256": key,
        "reply": None,
        "watched": [{"class": top}] if top else [],
        "request_id": f"ts-{key}",
    }
    return json.dumps({**fields, **other}) + "\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = copy_project(tmp_path / "project")
    project.prediction_logs.mkdir(parents=True)
    lines = [_line(f"r{n}", "1.0") for n in range(40)]
    lines += [_line(f"r{n}", "2.0", "cat" if n < 10 else "dog", shadow=True) for n in range(20)]
    lines += [_line("old", "1.0", None, schema=2, reply=CAT), _line("number", "1.0", None, reply=[1.5])]
    (project.prediction_logs / "pets.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(project.root)
    return project


def _csv(rows: dict[str, str]) -> Path:
    path = Path("labels.csv")
    path.write_text("request_id,label\n" + "".join(f"{key},{label}\n" for key, label in rows.items()))
    return path


def _label(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["label", "pets", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_labels_give_the_accuracy_of_each_version_and_count_once(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _csv({**{f"r{n}": "cat" for n in range(20)}, "lost": "cat", "old": "dog", "number": "cat"})
    found = _label(capsys, str(file))
    assert found["labels"] == {"counted": 41, "known": 0, "unknown": 2, "damaged": 0}
    first, second = found["versions"]["1.0"], found["versions"]["2.0"]
    assert (first["happened"], first["observations"]) == (20, 21)
    assert (second["rate"], second["observations"]) == (0.5, 20)
    assert second["lower"] < 0.5 < second["upper"]
    again = _label(capsys, str(file))
    assert again["labels"] == {"counted": 0, "known": 41, "unknown": 2, "damaged": 0}
    assert _label(capsys)["versions"] == again["versions"] == found["versions"]

    gauges = {(each.metric.name, each.labels[1:]): each.value for each in DriftSource(project).collect()}
    assert gauges["marsmith_label_accuracy", ("2.0", "estimate")] == 0.5
    assert gauges["marsmith_labelled_predictions_total", ("1.0",)] == 21
    stored = (project.root / ".marsmith" / "labels" / "pets.json").read_text()
    assert "lost" not in stored
    assert "dog" not in stored, "neither labels nor ids are kept"


def test_a_reply_without_the_front_has_torchserves_id_which_joins_too(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("labels.jsonl").write_text('{"x-request-id": "ts-r30", "label": "cat"}\n\n{"id": "r31", "label": "dog"}\n')
    found = _label(capsys, "labels.jsonl")
    assert (found["versions"]["1.0"]["happened"], found["versions"]["1.0"]["observations"]) == (1, 2)


def test_the_table_says_what_was_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "pets", str(_csv({"r1": "cat", "lost": "dog"}))]) == 0
    shown = capsys.readouterr()
    assert [line.split()[:3] for line in shown.out.splitlines()[1:]] == [["1.0", "1", "1"], ["2.0", "1", "1"]]
    assert "1 labels have no predicted class" in shown.err
    assert LabelledPredictions.read(project, "plants").accuracies() == {}


def test_the_last_of_two_labels_for_one_request_counts(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("key,label\na,cat\na,dog\n")
    assert read_labels(file).labels == {"a": "dog"}


@pytest.mark.parametrize(
    ("lines", "damaged"),
    [
        (["request_id,label", "r1,cat", "", "lost", "r2,cat,more", 'r3,"cat', f"r4,{'x' * 200_000}", "r5,cat"], (4, 7)),
        (["\ufeffid,label", "r1\u2028,cat", "r2,", "r3,cat", "r2,cat", "r5,cat"], (3,)),
        (['{"id": "r1", "label": "cat"}', "nonsense", "[]", '{"id": ["r9"], "label": "cat"}'], (2, 3, 4)),
    ],
)
def test_a_damaged_line_hides_no_other(
    project: Project, capsys: pytest.CaptureFixture[str], lines: list[str], damaged: tuple[int, ...]
) -> None:
    Path("labels").write_text("\n".join(lines), encoding="utf-8")
    found = read_labels(Path("labels"))
    assert (len(found.labels), set(found.labels.values()), found.damaged) == (
        len([line for line in lines if "cat" in line]) - (1 if "r9" in lines[-1] else 0), {"cat"}, damaged,
    )  # fmt: skip
    assert main(["label", "pets", "labels"]) == 0
    said = capsys.readouterr().err
    assert (
        f"{len(damaged)} lines have no request id or no label, and are left out: the first is labels:{damaged[0]}"
        in said
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("request_id,label\nr1,\n", "labels.csv:2 has no request id or no label"),
        ("name,label\nr1,cat\n", "labels.csv:2 has no request id or no label"),
        ('{"id": "r1", "label": ["cat"]}\nnonsense\n', "labels.csv:1 has no request id or no label"),
        (b"\xff\xfe", "is not UTF-8"),
        (None, "cannot read labels.csv"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(
    project: Project, capsys: pytest.CaptureFixture[str], content: str | bytes | None, problem: str
) -> None:
    if content is not None:
        Path("labels.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    assert main(["label", "pets", "labels.csv"]) == 2
    assert problem in capsys.readouterr().err.splitlines()[0]
    assert not (project.root / ".marsmith" / "labels").exists()


def test_a_model_without_a_log_is_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "plants", str(_csv({"r1": "cat"}))]) == 2
    assert "no prediction log of plants" in capsys.readouterr().err
