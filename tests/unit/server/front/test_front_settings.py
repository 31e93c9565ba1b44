"""What ``marsmith config`` says of the front."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.config.effective import Setting
from marsmith.errors import ConfigError
from marsmith.project import Project
from marsmith.run_state import Backend, RunState
from marsmith.server.front.settings import front_differences, front_settings


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "config" / "models").mkdir(parents=True)
    return Project(tmp_path)


def running(project: Project, backend: Backend | None) -> None:
    run_state.write(project, RunState(1, 0.0, "", "", "", "", "", project.run, tokens=True, backend=backend))


def test_without_a_server_the_settings_name_their_lines(project: Project) -> None:
    project.settings_file.write_text("archives: any\nfront: envoy\n")
    front, metrics, behind = front_settings(project)
    assert front == Setting("front", "envoy", "config/marsmith.yaml:2")
    assert metrics == Setting("front_metrics_port", "0", "marsmith's default")
    assert "free ports" in behind.value


def test_of_a_running_server_both_addresses_are_shown_and_another_front_is_a_difference(project: Project) -> None:
    project.settings_file.write_text("front: envoy\n")
    running(project, Backend("http://127.0.0.1:10001", "127.0.0.1:10002"))
    values = {setting.key: setting.value for setting in front_settings(project)}
    assert values["inference_address behind it"] == "http://127.0.0.1:10001"
    assert values["grpc_inference behind it"] == "127.0.0.1:10002"
    assert front_differences(project) == []
    running(project, None)
    [difference] = front_differences(project)
    assert (difference.key, difference.expected, difference.live) == ("front", "envoy", "none")


@pytest.mark.parametrize("text", ["front: nginx\n", "front: \n", "front_metrics_port: 65536\n", "frnt: envoy\n"])
def test_a_front_that_does_not_exist_is_refused(project: Project, text: str) -> None:
    project.settings_file.write_text(text)
    with pytest.raises(ConfigError):
        front_settings(project)
