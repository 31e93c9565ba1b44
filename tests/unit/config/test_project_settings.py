"""``config/marsmith.yaml``: what it may say, and what becomes of what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsmith import strict_yaml
from marsmith.archive import Policy
from marsmith.config.project_settings import (
    ProjectSettings,
    admission_policy,
    load_settings,
    parse_settings,
    policy_here,
    settings_schema,
)
from marsmith.errors import ConfigError, ProjectError
from marsmith.project import PROJECT_VARIABLE, Project
from support.projects import REPOSITORY
from support.signing_keys import write_keys


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "config" / "models").mkdir(parents=True)
    return Project(tmp_path)


def test_the_committed_file_says_the_defaults_and_so_does_no_file(project: Project) -> None:
    assert load_settings(Project(REPOSITORY)) == load_settings(project) == ProjectSettings()
    assert admission_policy(project) == Policy()


def test_the_committed_schema_is_that_of_the_model() -> None:
    assert (REPOSITORY / "config" / "marsmith.schema.json").read_text() == settings_schema()
    assert set(json.loads(settings_schema())["properties"]) == set(ProjectSettings.model_fields)


@pytest.mark.parametrize("text", ["", "\n\n", "# archives: ours\n", "#\n   # a comment\n"])
def test_a_text_without_keys_leaves_every_default(text: str) -> None:
    assert parse_settings(text, "marsmith.yaml") == ProjectSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("archive: ours\n", r"line 1: unknown key 'archive'; did you mean 'archives'\?"),
        ("archives: any\nsignature: required\n", r"line 2: unknown key 'signature'; did you mean 'signatures'\?"),
        ("archives: own\n", r"line 1: archives: input should be 'any' or 'ours', not 'own'"),
        ("archives: true\n", "line 1: archives: "),
        ("signatures: on\n", "line 1: signatures: "),
        ("signatures: required\n", "trusted_keys: signatures: required needs at least one key"),
        (
            "signatures: required\ntrusted_keys: []\n",
            "line 2: trusted_keys: signatures: required needs at least one key",
        ),
        ("trusted_keys: team.pem\n", "line 1: trusted_keys: input should be a valid list"),
        ("trusted_keys:\n- 3\n", "line 2: trusted_keys.0: input should be a valid string, not 3"),
        ("trusted_keys: ['']\n", "trusted_keys.0: expected the path of a file"),
        ("archives: any\narchives: ours\n", "duplicate key"),
        ("- any\n", "expected a mapping"),
        ("archives: [\n", "not valid YAML"),
    ],
)
def test_a_wrong_text_is_refused_with_the_line_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(text, "config/marsmith.yaml")


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings("archive: ours\nsignatures: maybe\ntrusted_keys: 3\n", "config/marsmith.yaml")
    assert len(caught.value.problems) == 3


@given(
    st.sampled_from(["any", "ours"]),
    st.sampled_from(["optional", "required"]),
    st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=3),
    st.sampled_from(["envoy", "none"]),
    st.integers(0, 65_535),
)
def test_what_is_printed_is_read_again(archives: str, signatures: str, keys: list[str], front: str, port: int) -> None:
    data: dict[str, object] = {"archives": archives, "signatures": signatures, "trusted_keys": keys}
    data |= {"front": front, "front_metrics_port": port, "listener": f"[::1]:{port}"}
    assert parse_settings(strict_yaml.dump(data), "x").model_dump() == data


def test_a_file_that_is_no_text_is_refused(project: Project) -> None:
    project.settings_file.write_bytes(b"archives: \xff\n")
    with pytest.raises(ConfigError, match=r"config/marsmith\.yaml: not UTF-8"):
        load_settings(project)


def test_trusted_keys_count_from_the_project_and_must_be_public_keys(project: Project) -> None:
    private, public = write_keys(project.root, "team")
    project.settings_file.write_text(f"signatures: required\ntrusted_keys: [{public.name}]\n")
    assert admission_policy(project) == Policy("any", "required", (public,))
    project.settings_file.write_text(f"trusted_keys: [{public.name}, {private.name}, gone.pem]\n")
    with pytest.raises(ConfigError) as caught:
        admission_policy(project)
    assert len(caught.value.problems) == 2
    assert "not a public key" in caught.value.message
    assert "gone.pem" in caught.value.message


def test_outside_of_a_project_the_default_holds_but_not_for_a_project_that_is_named_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert policy_here() == Policy()
    monkeypatch.setenv(PROJECT_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ProjectError):
        policy_here()
