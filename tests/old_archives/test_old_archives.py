"""Archives of former releases still verify, pass the checks of their handler, and answer as they did.

``doubling-0.1.mar`` was built by 0.1.0, whose archives carry the modules that the handlers share flat in the root.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsmith.archive import Archive
from marsmith.archive.verify import verify
from marsmith.cli import main
from marsmith.predictions.comparable import why_not_comparable
from marsmith.project import PROJECT_VARIABLE
from marsmith.runtime.archive_check import check_archive
from marsmith.runtime.replay import replay_checks
from marsmith.runtime.runner import Request, Runner
from support.projects import REPOSITORY

ARCHIVES = sorted(Path(__file__).parent.glob("*.mar"))


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_it_verifies_and_answers_its_examples(path: Path) -> None:
    archive = Archive.open(path)
    verify(archive).require()
    assert {check.outcome for check in replay_checks(archive)} == {"ok"}
    assert [item for item in check_archive(path) if item.severity == "error"] == []


def test_the_flat_modules_of_an_archive_are_those_that_it_carries(tmp_path: Path) -> None:
    [path] = (path for path in ARCHIVES if path.stem == "doubling-0.1")
    assert {"base_handler.py", "item_errors.py"} <= set(Archive.open(path).members)
    with Runner(path) as runner:
        good, bad = runner.run([Request(b"[1.0, 2.5]", "application/json"), Request(b"{", "application/json")])
    assert json.loads(good.body) == [2.0, 5.0]
    # The names of errors are those that its own modules give.
    assert (bad.status, json.loads(bad.body)["type"]) == (400, "MalformedRequest")


def test_its_handlers_are_renewed_by_repack_and_it_can_be_compared_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = (path for path in ARCHIVES if path.stem == "doubling-0.1")
    old, target = Archive.open(path), tmp_path / "doubling-0.2.mar"
    assert "older prediction log" in str(why_not_comparable(old))
    monkeypatch.setenv(PROJECT_VARIABLE, str(REPOSITORY))
    assert main(["repack", str(path), "--renew-handlers", "--version", "0.2", "--output", str(target)]) == 0
    new = Archive.open(target)
    verify(new).require()
    assert why_not_comparable(new) is None
    assert {check.outcome for check in replay_checks(new)} == {"ok"}
    assert [item for item in check_archive(target) if item.severity == "error"] == []
    assert {name for name in new.members if name.endswith(".py") and "/" not in name} == {"tensor_handler.py"}
    stays = {"model.pt", "index_to_name.json", "model-config.yaml", "MAR-INF/environment.txt"}
    assert all(new.read(name) == old.read(name) for name in stays)
    named = {part["name"] for part in json.loads(new.read("MAR-INF/sbom.cdx.json"))["components"]}
    assert "marsmith_handler/prediction_log.py" in named
    assert "base_handler.py" not in named


def test_a_handler_that_the_project_does_not_have_is_not_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path))
    (tmp_path / "handlers").mkdir()
    (tmp_path / "config" / "models").mkdir(parents=True)
    [path] = (path for path in ARCHIVES if path.stem == "doubling-0.1")
    target = tmp_path / "new.mar"
    assert main(["repack", str(path), "--renew-handlers", "--version", "0.2", "--output", str(target)]) == 1
    assert "has no tensor_handler.py, so the archive's handler cannot be renewed" in capsys.readouterr().err
    assert not target.exists()


def test_it_becomes_another_version_by_repack(tmp_path: Path) -> None:
    [path] = (path for path in ARCHIVES if path.stem == "doubling-0.1")
    target = tmp_path / "doubling-0.2.mar"
    assert main(["repack", str(path), "--version", "0.2", "--output", str(target)]) == 0
    assert {check.outcome for check in replay_checks(Archive.open(target))} == {"ok"}
