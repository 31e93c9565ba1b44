"""A real TorchServe whose store holds bad archives beside good ones: the good ones are served, the bad ones named."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator

import pytest

from marsmith import run_state
from marsmith.project import Project
from marsmith.server import lifecycle
from marsmith.state import served_file
from support.command import asked, marsmith, with_config
from support.live_server import make_project, tiny_archive, until
from support.long_tests import long

# Each ends a whole TorchServe 0.12.0, with a Java stack that does not name the archive.
FATAL_CONFIGS = {
    "empty": "",
    "comments": "# responseTimeout: 20\n",
    "list": "- responseTimeout: 20\n",
    "text": "responseTimeout\n",
    "number": "120\n",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose server served two versions, the second by default, before that one was broken and others came."""
    folder = tmp_path_factory.mktemp("left_out")
    archives = {
        "echo-1.0.mar": tiny_archive(folder / "one.mar"),
        "echo-2.0.mar": tiny_archive(folder / "two.mar", version="2.0"),
    }
    project = make_project(folder / "p", archives)
    lifecycle.start(project)
    lifecycle.stop(project)
    store = project.model_store
    for name, config in FATAL_CONFIGS.items():
        other = tiny_archive(folder / "other.mar", name=name)
        with_config(other, store / f"{name}-1.0.mar", config)
    with_config(archives["echo-2.0.mar"], store / "echo-2.0.mar", "# nothing\n")
    (store / "lost+found").mkdir(mode=0o700)
    (store / "lost+found" / "h.py").touch()
    yield project
    lifecycle.stop(project)


def test_the_good_ones_are_served_and_the_bad_ones_are_named(project: Project) -> None:
    refused = marsmith(project, "serve", "--strict")
    assert refused.returncode == 1
    assert "empty-1.0.mar: " in refused.stderr
    assert "lost+found" not in refused.stderr

    started = marsmith(project, "serve")
    assert started.returncode == 0, started.stderr
    lines = [line for line in started.stderr.splitlines() if line.startswith("left out: ")]
    expected = ["echo-2.0.mar", *(f"{name}-1.0.mar" for name in FATAL_CONFIGS), "lost+found"]
    assert sorted(line.split()[2].rstrip(":") for line in lines) == sorted(expected)
    shown = marsmith(project, "status")
    assert shown.returncode == 0
    assert [line for line in shown.stdout.splitlines() if line.startswith("left out: ")] == lines
    data = json.loads(marsmith(project, "status", "--json").stdout)
    assert [f"{each['model']}:{each['version']}" for each in data["versions"]] == ["echo:1.0"]
    assert {each["file"] for each in data["left_out"]} == set(expected)


def test_a_default_that_is_left_out_answers_503_and_no_other_takes_its_place_not_even_after_a_crash(
    project: Project,
) -> None:
    assert (asked(project, "echo"), asked(project, "echo/2.0"), asked(project, "echo/1.0")) == (503, 503, 200)
    first = run_state.read(project)
    os.kill(first.pid, signal.SIGKILL)

    def runs_again() -> bool:
        state = run_state.read(project) if (project.run / run_state.FILE_NAME).exists() else first
        return state.pid != first.pid and state.ready

    until(runs_again)
    assert (asked(project, "echo"), asked(project, "echo/2.0"), asked(project, "echo/1.0")) == (503, 503, 200)
    assert run_state.read(project).left_out == first.left_out
    remembered = served_file.load(project).state
    assert remembered is not None
    assert remembered.models["echo"].default == "2.0"
    assert remembered.file(("echo", "2.0")) == "echo-2.0.mar"


def test_when_it_is_fixed_it_is_the_default_again(project: Project) -> None:
    assert marsmith(project, "stop").returncode == 0
    shutil.copy(project.root.parent / "two.mar", project.model_store / "echo-2.0.mar")
    started = marsmith(project, "serve")
    assert started.returncode == 0, started.stderr
    data = json.loads(marsmith(project, "status", "--json").stdout)
    assert [(each["version"], each["default"]) for each in data["versions"]] == [("1.0", False), ("2.0", True)]
    assert asked(project, "echo") == 200


def serve_broken(project: Project) -> None:
    """Serve with the default version left out."""
    assert marsmith(project, "stop").returncode == 0
    with_config(project.root.parent / "two.mar", project.model_store / "echo-2.0.mar", "# nothing\n")
    started = marsmith(project, "serve")
    assert started.returncode == 0, started.stderr
    assert asked(project, "echo") == 503


def left_out(project: Project) -> set[str]:
    return {each["file"] for each in json.loads(marsmith(project, "status", "--json").stdout)["left_out"]}


# tests/live/test_failing_loads_live.py registers what did not load.
@long("servers")
def test_fixed_it_is_registered_on_the_running_server_in_place_of_what_stood_in(project: Project) -> None:
    serve_broken(project)
    assert "echo-2.0.mar" in left_out(project)
    shutil.copy(project.root.parent / "two.mar", project.model_store / "echo-2.0.mar")
    fixed = marsmith(project, "register", "echo-2.0.mar")
    assert (fixed.returncode, fixed.stdout.endswith("default version\n")) == (0, True), fixed.stderr
    assert (asked(project, "echo"), asked(project, "echo/2.0"), asked(project, "echo/1.0")) == (200, 200, 200)
    assert "echo-2.0.mar" not in left_out(project)


def test_a_deploy_from_outside_the_store_brings_it_back(project: Project) -> None:
    serve_broken(project)
    stored = project.model_store / "echo-2.0.mar"
    fixed = project.root.parent / "two.mar"
    refused = marsmith(project, "deploy", str(fixed))
    assert (refused.returncode, "take the other one out of the model store" in refused.stderr) == (2, True)
    stored.unlink()
    planned = marsmith(project, "deploy", str(fixed), "--plan")
    assert "copy it into the model store, register 2.0 in its reserved place" in planned.stdout
    assert not stored.exists()
    deployed = marsmith(project, "deploy", str(fixed))
    assert deployed.returncode == 0, deployed.stderr
    assert stored.read_bytes() == fixed.read_bytes()
    assert (asked(project, "echo"), asked(project, "echo/2.0"), asked(project, "echo/1.0")) == (200, 200, 200)
    assert "echo-2.0.mar" not in left_out(project)


def test_other_bytes_take_its_name_when_it_has_been_let_go_of(project: Project) -> None:
    serve_broken(project)
    tiny_archive(project.model_store / "echo-2.0.mar", version="2.0", members={"other.txt": "other bytes"})
    assert "is registered with SHA-256" in marsmith(project, "register", "echo-2.0.mar").stderr
    assert marsmith(project, "unregister", "echo:2.0").returncode == 2
    assert asked(project, "echo") == 503
    for arguments in (("set-default", "echo", "1.0"), ("unregister", "echo:2.0"), ("register", "echo-2.0.mar")):
        done = marsmith(project, *arguments)
        assert done.returncode == 0, done.stderr
    assert (asked(project, "echo"), asked(project, "echo/2.0")) == (200, 200)
    assert "echo-2.0.mar" not in left_out(project)
    served = json.loads(marsmith(project, "status", "--json").stdout)["versions"]
    assert [(each["version"], each["default"]) for each in served] == [("1.0", True), ("2.0", False)]
