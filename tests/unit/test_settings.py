from __future__ import annotations

from pathlib import Path

import pytest

from marsmith.errors import ProjectError, UsageError
from marsmith.project import PROJECT_VARIABLE, find_project


def test_the_project_is_found_upwards(tmp_path: Path) -> None:
    (tmp_path / "config" / "models").mkdir(parents=True)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find_project(inner).root == tmp_path


def test_outside_a_project_the_error_says_what_a_project_is(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="config/models"):
        find_project(tmp_path)


def test_the_variable_names_the_project_outright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p" / "config" / "models").mkdir(parents=True)
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path / "p"))
    assert find_project(Path("/")).root == tmp_path / "p"
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path))
    with pytest.raises(ProjectError, match="no config/models"):
        find_project()


def test_a_misspelt_model_gets_the_nearest_one(tmp_path: Path) -> None:
    specs = tmp_path / "config" / "models"
    specs.mkdir(parents=True)
    (specs / "resnet18.yaml").touch()
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        find_project(tmp_path).spec("resnet81")
