"""State that one release leaves for another: what is missing, wrong or of a later release is told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.errors import FormatError, MarsmithError
from marsmith.project import Project
from marsmith.run_state import LeftOut, RunState
from marsmith.server import supervisor_state
from marsmith.state import served_file
from marsmith.state.journal import Journal, JournalFile
from marsmith.state.served import ServerState
from marsmith.state_files import NewerFormatError, parse, render


@dataclass(frozen=True)
class Part:
    name: str
    place: Path | None = None


@dataclass(frozen=True)
class Whole:
    count: int
    parts: tuple[Part, ...] = ()


def test_a_state_is_read_back_also_if_a_name_in_it_is_not_utf_8() -> None:
    state = Whole(3, (Part("a\udcff", Path("/b\udcff")), Part("ü")))
    assert parse(Whole, render(state, 2), "x.json", version=2) == state


def test_a_key_of_another_release_is_ignored_and_one_that_is_missing_has_its_default() -> None:
    assert parse(Whole, '{"format": 1, "count": 1, "later": {"a": 1}}', "x.json", version=1) == Whole(1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("7", "has no format"),
        ('{"count": 1}', "has no format"),
        ('{"format": "1", "count": 1}', "has no format"),
        ('{"format": true, "count": 1}', "has no format"),
        ('{"format": 1, "count": 1}', "is of format 1, this marsmith knows 2"),
        ('{"format": 2}', "has no count"),
        ('{"format": 2, "count": "many"}', "count is 'many'"),
        ('{"format": 2, "count": 1, "parts": [{}]}', "parts.0 has no name"),
        ('{"format": 2, "count": 1, "parts": [7]}', "parts.0 is 7, which has no name"),
        ('{"format": 2, "count": 1, "parts": 7}', "parts is 7"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(Whole, text, "x.json", version=2)
    assert caught.value.message.startswith(f"x.json: {problem}")
    assert "\n" not in caught.value.message
    assert not isinstance(caught.value, NewerFormatError)


def _served(project: Project) -> tuple[Path, Callable[[], object]]:
    served_file.save(project, ServerState())
    return served_file.state_file(project), lambda: served_file.load(project)


def _journal(project: Project) -> tuple[Path, Callable[[], object]]:
    file = JournalFile.of(project, "echo")
    file.write(Journal("echo"))
    return file.path, file.read


def _running(project: Project) -> tuple[Path, Callable[[], object]]:
    left = (LeftOut("a.mar", "why"),)
    run_state.write(project, RunState(1, 2.0, "a", "b", "c", "d", "e", project.run, tokens=True, left_out=left))
    return project.run / run_state.FILE_NAME, lambda: run_state.read(project)


@pytest.mark.parametrize(
    ("write", "way_out"), [(_served, "marsmith serve --fresh"), (_journal, "upgrade"), (_running, "marsmith stop")]
)
def test_what_a_later_marsmith_wrote_is_refused_with_the_way_out_and_kept(
    tmp_path: Path, write: Callable[[Project], tuple[Path, Callable[[], object]]], way_out: str
) -> None:
    path, read = write(Project(tmp_path))
    read()
    text = json.dumps({**json.loads(path.read_text()), "format": 9, "models": 7})
    path.write_text(text)
    with pytest.raises(MarsmithError, match="is of format 9, this marsmith knows 1") as caught:
        read()
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert "pip install --upgrade marsmith" in str(caught.value.tip)
    assert way_out in str(caught.value.tip)
    assert path.read_text() == text


def test_a_run_state_without_a_format_is_one_of_an_early_release(tmp_path: Path) -> None:
    project = Project(tmp_path)
    path, read = _running(project)
    before = read()
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "format"}))
    assert read() == before
    supervisor_state.write(project, supervisor_state.of_this_process())
    assert json.loads((project.run / supervisor_state.FILE_NAME).read_text())["format"] == 1
