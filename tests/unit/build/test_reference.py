"""The reference of an archive: made from validation data by the handler itself, reproducible, shown and verified."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from marsmith.archive import Archive
from marsmith.archive.reference import FILE_NAME, Reference, parse_reference, read_reference, render_reference
from marsmith.archive.verify import verify
from marsmith.build import build_from_spec
from marsmith.build.from_spec import BuiltArchive
from marsmith.build.reference import validation_files
from marsmith.cli import main
from marsmith.config import load_spec
from marsmith.errors import BuildError, FormatError
from marsmith.project import Project
from marsmith.statistics import ClassSketch, NumberSketch, sketch_of
from support.export_fixtures import write_tiny
from support.long_tests import long
from support.pictures import picture


def _with_reference(project: Project, *references: str, **settings: object) -> Project:
    spec = write_tiny(project).specs / "tiny.yaml"
    content = yaml.safe_load(spec.read_text())
    content["reference"] = list(references)
    content["handler"].setdefault("settings", {}).update(settings)
    spec.write_text(yaml.safe_dump(content))
    return project


def _photos(folder: Path, count: int) -> None:
    draw = random.Random(3)
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        place = folder / "more" if number % 2 else folder
        (place / f"{number}.png").write_bytes(picture(*(draw.randrange(256) for _ in range(3))))


def _build(project: Project) -> BuiltArchive:
    return build_from_spec(project, load_spec(project, "tiny"))


def test_a_build_sketches_what_its_handler_logs_of_validation_data(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = tmp_path / "live.jsonl"
    _photos(project.root / "validation", 24)
    _with_reference(project, "validation", prediction_log={"path": str(live), "sample": 1})
    built = _build(project)
    archive = Archive.open(built.path)
    reference = read_reference(archive)
    assert reference is not None
    assert reference.inputs == 24
    assert {"class", "confidence", "entropy", "margin", "brightness", "width"} <= reference.statistics.keys()
    assert "status" not in reference.statistics
    assert all(sum(sketch.counts) == 24 for sketch in reference.statistics.values())
    assert FILE_NAME in archive.sums  # type: ignore[operator]
    (check,) = [check for check in verify(archive, environment=False).checks if check.name == "reference"]
    assert (check.outcome, "of 24 inputs" in check.detail) == ("ok", True)
    assert main(["inspect", str(built.path)]) == 0
    assert reference.sha256 in capsys.readouterr().out
    assert not live.exists(), "a build writes nothing into the log of the server"

    assert _build(project).reused
    (project.root / "validation" / "new.png").write_bytes(picture(1, 2, 3))
    spec = load_spec(project, "tiny")
    assert len(validation_files(spec.reference, project.root)) == 25


@long("export")
def test_the_same_validation_data_give_the_same_bytes(project: Project) -> None:
    _photos(project.root / "validation", 24)
    built = _build(_with_reference(project, "validation"))
    built.path.unlink()
    rebuilt = _build(project)
    assert (rebuilt.reused, rebuilt.sha256) == (False, built.sha256)


@long("export")
def test_an_input_that_is_refused_stops_the_build(project: Project) -> None:
    (project.root / "validation").mkdir()
    (project.root / "validation" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(BuildError, match=r"bad\.png gets 415"):
        _build(_with_reference(project, "validation"))
    assert not list(project.model_store.iterdir())


def test_a_folder_without_files_is_refused_before_anything_is_exported(project: Project) -> None:
    (project.root / "validation").mkdir()
    with pytest.raises(BuildError, match="validation has no file"):
        _build(_with_reference(project, "validation"))
    assert not (project.root / ".marsmith").exists()


def test_a_reference_is_restored_as_it_was_written() -> None:
    statistics = {"a": sketch_of([1.0, 2.0, 2.0, 3.5]), "b": sketch_of(["cat", "dog", "cat"])}
    assert isinstance(statistics["a"], NumberSketch)
    assert isinstance(statistics["b"], ClassSketch)
    reference = Reference(4, "0" * 64, statistics)
    assert parse_reference(render_reference(reference)) == reference


@pytest.mark.parametrize(
    "change",
    [
        {"formatVersion": 2},
        {"statistics": []},
        {"statistics": {"a": {"edges": [2, 1], "counts": [1, 1, 1]}}},
        {"statistics": {"a": {"edges": [1], "counts": [1, -1]}}},
        {"statistics": {"a": {"edges": [1], "counts": [1]}}},
        {"statistics": {"a": {"counts": [1]}}},
    ],
)
def test_a_damaged_reference_is_refused(change: dict[str, object]) -> None:
    content = {"formatVersion": 1, "inputs": 1, "sha256": "0", "statistics": {}}
    with pytest.raises(FormatError, match="reference"):
        parse_reference(json.dumps({**content, **change}))
    with pytest.raises(FormatError):
        parse_reference("[" * 100_000)
