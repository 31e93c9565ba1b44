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
from marsmith.runtime.archive_check import check_archive
from marsmith.runtime.replay import replay_checks
from marsmith.runtime.runner import Request, Runner

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


def test_it_becomes_another_version_by_repack(tmp_path: Path) -> None:
    [path] = (path for path in ARCHIVES if path.stem == "doubling-0.1")
    target = tmp_path / "doubling-0.2.mar"
    assert main(["repack", str(path), "--version", "0.2", "--output", str(target)]) == 0
    assert {check.outcome for check in replay_checks(Archive.open(target))} == {"ok"}
