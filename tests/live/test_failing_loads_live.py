"""A real TorchServe with versions that pass every check and then do not load: they are left out, the others served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marsmith import run_state
from marsmith.archive.examples import FILE_NAME, FOLDER, ValidatedExample, render_examples
from marsmith.client.blocking_client import Client, VersionStatus
from marsmith.errors import NotRunningError, NoWorkerError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.server import lifecycle
from marsmith.server import state as server_state
from marsmith.state import served_file
from support.command import asked, with_config
from support.live_server import make_project, tiny_archive, until
from support.long_tests import long
from support.pictures import picture
from support.tampered_archives import shipped_archive

RED = picture(255, 0, 0)
PACKAGE = "marsmith-left-out-test"
CANNOT_IMPORT = "import a_module_that_is_not_there\n"
# Why each is left out.
REASONS = {
    "tiny-2.0.mar": PACKAGE,
    "cut-1.0.mar": "a worker died: ",
    "wrong-1.0.mar": "a worker died: ",
    "answer-1.0.mar": "gives a wrong answer to its example in.json: reply['cat']",
    "fatal-1.0.mar": "TorchServe itself ended while it loaded it: ClassCastException: class java.util.Date",
    "packages-1.0.mar": "TorchServe refused it: ModelException: Custom pip package installation failed",
}


def marsmith(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    packages = os.pathsep.join(filter(None, (str(project.root / "packages"), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "marsmith", *arguments],
        env=os.environ | {PROJECT_VARIABLE: str(project.root), "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def install(project: Project) -> None:
    """Let workers find the package that ``tiny:2.0`` was exported with."""
    folder = project.root / "packages" / f"{PACKAGE.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n")


def example(reply: object, body: bytes, kind: str) -> dict[str, bytes]:
    expected = ValidatedExample("in.json", kind, 200, reply, None, 1e-3)
    return {FILE_NAME: render_examples([expected]).encode(), f"{FOLDER}/in.json": body}


def needing_packages(source: Path, target: Path) -> Path:
    """Write ``source`` anew with a requirement that pip cannot install, which ends the load inside Java."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "MAR-INF/MANIFEST.json":
                manifest = json.loads(content)
                manifest["model"]["requirementsFile"] = "requirements.txt"
                content = json.dumps(manifest).encode()
            new.writestr(name, content)
        new.writestr("requirements.txt", "/a/folder/that/is/not/there\n")
    return target


def fill(store: Path, folder: Path) -> None:
    """Put one archive for each way not to load into the store."""
    shipped_archive(store / "cut-1.0.mar", name="cut", cut=True)
    wrong = example({"red": 0.1, "green": 0.8, "blue": 0.1}, RED, "image/png")
    shipped_archive(store / "wrong-1.0.mar", name="wrong", more=wrong)
    answer = example({"cat": 0.6}, b'{"cat": 0.5}', "application/octet-stream")
    tiny_archive(store / "answer-1.0.mar", name="answer", members={**answer})
    # No check knows of it, and it ends the whole of TorchServe 0.12.0.
    with_config(tiny_archive(folder / "fatal.mar", name="fatal"), store / "fatal-1.0.mar", "2024-01-01: a date\n")
    needing_packages(tiny_archive(folder / "packages.mar", name="packages"), store / "packages-1.0.mar")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose default version no longer loads, because a package has gone, beside others that never did."""
    folder = tmp_path_factory.mktemp("failing")
    archives = {
        "tiny-1.0.mar": shipped_archive(folder / "one.mar"),
        "tiny-2.0.mar": shipped_archive(folder / "two.mar", version="2.0", needs=f"{PACKAGE}==1.0"),
    }
    project = make_project(folder / "p", archives, install_py_dep_per_model="true")
    install(project)
    first = marsmith(project, "serve", "--restart", "no")
    assert (first.returncode, "left out" in first.stderr) == (0, False), first.stderr
    lifecycle.stop(project, timeout_s=0)
    shutil.rmtree(project.root / "packages")
    fill(project.model_store, folder)
    yield project
    lifecycle.stop(project, timeout_s=0)


def status_of(project: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(marsmith(project, "status", "--json").stdout)
    return found


def registered(project: Project) -> dict[tuple[str, str], VersionStatus]:
    with Client.for_project(project) as client:
        return {(each.model_name, each.model_version): each for each in server_state.registered_versions(client)}


def answers(project: Project, version: str | None = None) -> bool:
    """Whether a version answers."""
    with Client.for_project(project) as client:
        try:
            client.predict("tiny", RED, version=version, content_type="image/png")
        except NoWorkerError:
            return False
    return True


def crash(project: Project) -> None:
    """Kill TorchServe, and wait until its supervisor has brought it back."""
    before = run_state.read(project)
    os.kill(before.pid, signal.SIGKILL)

    def runs_again() -> bool:
        state = run_state.read(project) if (project.run / run_state.FILE_NAME).exists() else before
        return state.pid != before.pid and state.ready

    until(runs_again)


def runs_as_planned(project: Project) -> None:
    """2.0 has the place that it had, and answers 503; 1.0 answers under its name; all others are off the server."""
    found = registered(project)
    assert found.keys() == {("tiny", "1.0"), ("tiny", "2.0")} | (found.keys() & {("packages", "1.0")})
    assert found["tiny", "2.0"].default
    assert found["tiny", "2.0"].workers == ()
    assert (asked(project, "tiny"), asked(project, "tiny/2.0"), answers(project, "1.0")) == (503, 503, True)
    assert [(each["model"], each["version"]) for each in status_of(project)["versions"]] == [("tiny", "1.0")]


def test_a_strict_start_ends_with_the_cause(project: Project) -> None:
    refused = marsmith(project, "serve", "--strict")
    assert refused.returncode == 1
    assert "TorchServe ended while it loaded fatal-1.0.mar: ClassCastException" in refused.stderr
    assert marsmith(project, "status").returncode == 1


def test_the_others_are_served_and_each_that_does_not_load_has_one_line(project: Project) -> None:
    started = marsmith(project, "serve", "--restart", "always")
    assert started.returncode == 0, started.stderr
    lines = {line.split()[2]: line for line in started.stderr.splitlines() if line.startswith("left out: ")}
    assert lines.keys() == {f"{name}:" for name in REASONS}
    for name, reason in REASONS.items():
        assert reason in lines[f"{name}:"]
    assert "tiny:2.0 is the default and left out: requests without a version get 503" in started.stderr
    shown = marsmith(project, "status").stdout
    assert {line for line in shown.splitlines() if line.startswith("left out: ")} == set(lines.values())
    assert {each["file"] for each in status_of(project)["left_out"]} == REASONS.keys()
    runs_as_planned(project)
    remembered = served_file.read(project)
    assert remembered.models["tiny"].default == "2.0"
    assert remembered.models.keys() == {"tiny"}


@pytest.fixture
def served(project: Project) -> Project:
    """The project with its server, whichever test of this file comes first."""
    if marsmith(project, "status").returncode != 0:
        started = marsmith(project, "serve", "--restart", "always")
        assert started.returncode == 0, started.stderr
    return project


def test_what_stands_in_is_neither_scaled_nor_made_the_default(served: Project) -> None:
    project = served
    for arguments in (("scale", "tiny:2.0", "--workers", "1"), ("set-default", "tiny", "2.0")):
        refused = marsmith(project, *arguments)
        assert refused.returncode == 2, refused.stderr
        assert "tiny:2.0 is left out of the running server" in refused.stderr


def test_registering_it_unmended_changes_nothing(served: Project) -> None:
    project = served
    refused = marsmith(project, "register", "tiny-2.0.mar")
    assert refused.returncode == 1
    assert PACKAGE in refused.stderr
    runs_as_planned(project)


def test_after_a_crash_the_same_are_left_out(served: Project) -> None:
    project = served
    crash(project)
    assert {each.file for each in run_state.read(project).left_out} == REASONS.keys()
    assert "left out: tiny-2.0.mar: a worker died: " in (project.run / "supervisor.log").read_text()
    runs_as_planned(project)


def test_fixed_it_is_registered_in_its_place_and_is_the_default_again(served: Project) -> None:
    project = served
    install(project)
    fixed = marsmith(project, "register", "tiny-2.0.mar")
    assert fixed.returncode == 0, fixed.stderr
    assert fixed.stdout == "tiny:2.0 is ready: 1/1 workers, batch size 2, default version\n"
    assert answers(project)
    found = registered(project)
    assert {version for name, version in found if name == "tiny"} == {"1.0", "2.0"}
    assert found["tiny", "2.0"].default
    shown = status_of(project)
    assert {each["file"] for each in shown["left_out"]} == REASONS.keys() - {"tiny-2.0.mar"}
    assert {each["version"] for each in shown["versions"]} == {"1.0", "2.0"}


# tests/live/test_left_out_live.py deploys what lint left out.
@long("servers")
def test_a_deploy_brings_it_back_as_well(served: Project) -> None:
    project = served
    shutil.rmtree(project.root / "packages")
    crash(project)
    runs_as_planned(project)
    planned = marsmith(project, "deploy", "tiny-2.0.mar", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "in its reserved place" in planned.stdout
    stored, outside = project.model_store / "tiny-2.0.mar", project.root.parent / "tiny-2.0.mar"
    stored.rename(outside)
    refused = marsmith(project, "deploy", str(outside))
    assert refused.returncode == 1
    assert PACKAGE in refused.stderr
    assert not stored.exists()
    outside.rename(stored)
    runs_as_planned(project)
    install(project)
    deployed = marsmith(project, "deploy", "tiny-2.0.mar")
    assert deployed.returncode == 0, deployed.stderr
    assert answers(project)
    assert registered(project)["tiny", "2.0"].default


def test_when_nothing_is_left_to_serve_the_server_is_stopped(project: Project) -> None:
    lifecycle.stop(project, timeout_s=0)
    for path in project.model_store.glob("*.mar"):
        path.unlink()
    tiny_archive(project.model_store / "import-1.0.mar", name="import", handler=CANNOT_IMPORT)
    refused = marsmith(project, "serve", "--fresh")
    assert refused.returncode == 1
    assert "No module named 'a_module_that_is_not_there'" in refused.stderr
    assert marsmith(project, "status").returncode == 1
    with pytest.raises(NotRunningError):
        run_state.read(project)
