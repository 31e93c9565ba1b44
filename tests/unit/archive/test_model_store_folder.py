"""Which folder is the model store: one answer for every verb."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.cli import main
from marsmith.cli.tune import _built
from marsmith.cli.watch import _archive
from marsmith.config import load_spec
from marsmith.config.lint.run import _project_files
from marsmith.config.properties import render_properties
from marsmith.config.server_config import model_store, served_store
from marsmith.deploy.rollout.store import find
from marsmith.errors import ConfigError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import machine_facts
from marsmith.server.registration import archive_in_store
from support.deploy_fixtures import write_version
from support.export_fixtures import write_tiny
from support.live_server import make_project
from support.projects import REPOSITORY

ELSEWHERE = "die großen Archive"


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Project, Path]:
    """A project whose store is another folder, with one archive in it."""
    store = tmp_path / ELSEWHERE
    store.mkdir()
    project = make_project(tmp_path / "My Project", model_store=f"../{ELSEWHERE}")
    write_version(store, "1.0")
    return project, store


def test_every_verb_takes_the_store_that_the_server_config_names(
    elsewhere: tuple[Project, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, store = elsewhere
    archive = store / "echo-1.0.mar"
    assert model_store(project) == served_store(project) == store
    assert archive_in_store(served_store(project), "echo-1.0") == archive
    assert find(served_store(project), "echo-1.0").archive.path == archive
    assert not find(served_store(project), str(archive)).stored
    # The same bytes from elsewhere: the store has them already.
    assert not find(served_store(project), str(write_version(tmp_path, "1.0"))).stored
    assert archive in list(_project_files(project))
    assert machine_facts.gather(project).archive_bytes == archive.stat().st_size
    assert _built(project, "echo", "1.0") == archive
    monkeypatch.setenv("MARSMITH_PROJECT", str(project.root))
    assert main(["config"]) == 0
    assert str(store) in capsys.readouterr().out


@pytest.mark.tensors
def test_archive_and_watch_build_into_it_and_build_again_when_it_is_another(project: Project, tmp_path: Path) -> None:
    spec = load_spec(write_tiny(project), "tiny")
    stores = [tmp_path / "one", tmp_path / "two" / "deep", project.root / "model_store"]
    for store in stores:
        project.server_config.write_text(render_properties({"model_store": str(store)}))
        assert _archive(project, spec) == store / "tiny-1.0.mar"
    assert len({(store / "tiny-1.0.mar").read_bytes() for store in stores}) == 1


def test_variables_count_as_the_server_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    assert model_store(project) == tmp_path / "model_store"
    monkeypatch.setenv("TS_MODEL_STORE", "from variable")
    project.server_config.write_text("model_store=from file\n")
    assert model_store(project) == tmp_path / "from file"
    project.server_config.write_text("model_store=from file\nenable_envvars_config=true\n")
    assert model_store(project) == tmp_path / "from variable"
    # What another key needs is not asked.
    project.server_config.write_text("model_store=$$STORE$$/x\nkeystore_pass=$$UNSET_SECRET$$\n")
    monkeypatch.setenv("STORE", "/srv")
    assert model_store(project) == Path("/srv/x")
    monkeypatch.delenv("STORE")
    with pytest.raises(ConfigError, match="STORE is not set"):
        model_store(project)


def test_a_running_server_is_asked_for_what_it_was_started_with(
    elsewhere: tuple[Project, Path], tmp_path: Path
) -> None:
    project, store = elsewhere
    project.run.mkdir(parents=True)
    (project.run / "config.properties").write_text(render_properties({"model_store": str(store)}))
    project.server_config.write_text("model_store=another\n")
    # It ran once, and runs no more.
    assert served_store(project) == project.root / "another"
    run_state.write(project, RunState(1, 0.0, "", "", "", "", "", project.run, tokens=False))
    assert served_store(project) == store
    assert find(served_store(project), "echo-1.0").archive.path.parent == store


def test_nobody_else_decides_which_folder_it_is() -> None:
    # Those that ask the project itself: the one owner, and the maker of a scratch project.
    asked = set()
    for path in (REPOSITORY / "src" / "marsmith").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        asked |= {path.name for node in nodes if isinstance(node, ast.Attribute) and node.attr == "model_store"}
    assert asked == {"server_config.py", "scratch.py"}
