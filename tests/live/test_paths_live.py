"""A project whose path has spaces and all that shells, Java, properties files and URLs treat in ways of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith.config.certificate import folder_of
from marsmith.config.server_config import effective_config, read_server_config
from marsmith.project import Project
from marsmith.server import launch, lifecycle
from marsmith.server import processes as server_process
from support.deploy_fixtures import MODEL, write_version
from support.live_server import make_project
from support.long_tests import mostly_long

# In one name, because a server takes seconds; `$$` begins a reference to a variable in config.properties.
FOLDER = "My Projekt ü # 50% $HOME 'a' \"b\" & (c); !, d:e"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("paths") / FOLDER
    project = make_project(root)
    write_version(project.model_store, "1.0")
    (root / "config" / "models" / f"{MODEL}.yaml").write_text("{}")
    yield project
    server_process.end(project.run, 0.0)


def marsmith(project: Project, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "marsmith", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=project.root, env=env, capture_output=True, text=True, check=False)


def test_the_options_for_java_stay_whole(project: Project) -> None:
    options = launch.java_options(effective_config(project, read_server_config(project), {}))
    (log_config,) = [option for option in options if "configurationFile" in option]
    uri = log_config.partition("=")[2]
    assert uri == (project.root / "config" / "log4j2.xml").as_uri()
    assert not set(" #'\"$&;()!") & set(uri.removeprefix("file:"))


@pytest.mark.live
@pytest.mark.parametrize("locale", mostly_long("servers", ["C.UTF-8", "C"], ["C"]))
def test_it_serves_predicts_deploys_and_stops(project: Project, tmp_path: Path, locale: str) -> None:
    version = {"C.UTF-8": "2.0", "C": "3.0"}[locale]
    environment = {"LC_ALL": locale}
    text = project.root / "my text.bin"
    text.write_text("hello")
    served = marsmith(project, "serve", **environment)
    assert served.returncode == 0, served.stderr
    # The log's configuration was found, and its files lie where they should.
    assert "Reconfiguration failed" not in served.stderr
    assert (project.run / "logs" / "model_log.log").exists()
    shown = marsmith(project, "predict", MODEL, str(text), "--commands", **environment)
    assert shown.returncode == 0, shown.stderr
    new = write_version(tmp_path, version)
    deployed = marsmith(project, "deploy", str(new), "--watch-s", "0.3", **environment)
    assert deployed.returncode == 0, deployed.stderr
    for line in [line for line in shown.stdout.splitlines() if line.startswith(("curl ", "MARSMITH_PROJECT="))]:
        if line.startswith("curl ") and shutil.which("curl") is None:
            continue
        sent = subprocess.run(line, shell=True, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert sent.returncode == 0, (line, sent.stderr)
        assert json.loads(sent.stdout) == {"version": version, "echo": "hello"}, line
    stopped = marsmith(project, "stop", **environment)
    assert stopped.returncode == 0, stopped.stderr
    assert server_process.processes_of(project.run) == []


@pytest.mark.live
def test_tls_works_there_too(project: Project) -> None:
    before = project.server_config.read_bytes()
    made = marsmith(project, "certificate", "--write")
    assert made.returncode == 0, made.stderr
    try:
        lifecycle.start(project)
        assert folder_of(project).exists()
        text = project.root / "my text.bin"
        text.write_text("hello")
        for flags in ([], ["--grpc"]):
            answered = marsmith(project, "predict", MODEL, str(text), *flags)
            assert answered.returncode == 0, answered.stderr
    finally:
        lifecycle.stop(project, timeout_s=0)
        project.server_config.write_bytes(before)
