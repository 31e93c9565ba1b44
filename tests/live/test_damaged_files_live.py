"""A real TorchServe beside mean archives and damaged files of its run: only what is damaged itself does not work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.archive.store import open_stored
from marsmith.client import Client
from marsmith.config.effective import server_settings, version_settings
from marsmith.config.server_config import read_server_config
from marsmith.errors import MarsmithError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.server import lifecycle, supervisor_state
from marsmith.server import processes as server_process
from support.live_server import is_alive, make_project, tiny_archive, until
from support.long_tests import long, mostly_long

MERGED = "base: &b {responseTimeout: 20, startupTimeout: 60}\n<<: *b\nminWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
MEAN = {"bomb": BOMB, "brackets": "a: " + "[" * 300, "keys": "responseTimeout: 20\nyes: no\n", "comments": "# none\n"}
# How a timeout may be written, as TorchServe and we must read it alike; 120 stands for what is not a number to it.
TIMEOUTS = [
    *("010", "0x1F", "0b101", "1_000", "1:30", "'30'", "30.0", "3e1", "08", "0o17", "+30", "-30", "0", "yes", "~"),
    *("2147483647", "2147483648", "99999999999999999999", "190:20:30"),
    *("&x 45", "!!int '45'", "[30]", "{a: 30}", "45 # s"),
]


def marsmith(project: Project, *arguments: str, named: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marsmith", *arguments],
        env={**os.environ, **({PROJECT_VARIABLE: str(project.root)} if named else {})},
        cwd=project.run if not named else None,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def with_config(folder: Path, name: str, config: str) -> Path:
    """Write an archive with this model config."""
    source = tiny_archive(folder / "source.mar", name=name)
    target = folder / f"{name}-1.0.mar"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            new.writestr(member, config if member == "model-config.yaml" else old.read(member))
    return target


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project that runs in the background, with a supervisor."""
    folder = tmp_path_factory.mktemp("damaged")
    project = make_project(folder / "p", {"echo-1.0.mar": tiny_archive(folder / "echo.mar")})
    started = marsmith(project, "serve")
    assert started.returncode == 0, started.stderr
    yield project
    lifecycle.stop(project, timeout_s=0)


def supervisor_pid(project: Project) -> int:
    [process] = server_process.supervisors_of(project.run)
    return int(process.pid)


def test_a_merged_model_config_is_registered_shown_and_remembered(project: Project) -> None:
    shutil.copy(with_config(project.root, "merged", MERGED), project.model_store)
    registered = marsmith(project, "register", "merged-1.0.mar")
    assert registered.returncode == 0, registered.stderr
    shown = marsmith(project, "config", "merged")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "responseTimeout" in shown.stdout
    assert "the running server agrees" in shown.stdout


@pytest.mark.parametrize("name", sorted(MEAN))
def test_a_mean_archive_is_refused_before_anything_is_registered(project: Project, name: str) -> None:
    shutil.copy(with_config(project.root, name, MEAN[name]), project.model_store)
    refused = marsmith(project, "register", f"{name}-1.0.mar")
    assert refused.returncode == 1
    assert f"{name}-1.0.mar" in refused.stderr
    assert "Traceback" not in refused.stderr
    with Client.for_project(project) as client:
        assert name not in {model.name for model in client.models()}
    shown = marsmith(project, "config", "--json")
    assert name in {each["file"].removesuffix("-1.0.mar") for each in json.loads(shown.stdout)["left_out"]}


def test_torchserve_reads_a_timeout_as_we_do(project: Project) -> None:
    """Each way to write a number gives the same in TorchServe's own description and in ours."""
    settings = server_settings(project, read_server_config(project), {})
    found = {}
    with Client.for_project(project) as client:
        for number, written in enumerate(TIMEOUTS):
            archive = with_config(project.root, f"timeout{number}", f"responseTimeout: {written}\n")
            shutil.copy(archive, project.model_store)
            client.register(archive.name, initial_workers=0)
            [status] = client.describe(f"timeout{number}")
            ours = version_settings(open_stored(archive), settings, cores=1).value("responseTimeout")
            found[written] = (status.response_timeout_s, int(ours))
            client.unregister(f"timeout{number}")
            (project.model_store / archive.name).unlink()
    assert {written: ours for written, (_, ours) in found.items()} == {
        written: theirs for written, (theirs, _) in found.items()
    }
    assert found["010"] == (8, 8)
    assert found["1:30"] == (90, 90)


# TorchServe takes any text for a version; with a slash in it nobody can ask for it.
ODD_VERSIONS = ["1.0 beta", "50%", "1%2F2", "1\u202e0\u200b", "a:b?x=1#2"]


def odd(folder: Path, version: str) -> Path:
    return tiny_archive(folder / "odd-1.0.mar", name="odd", version=version)


@pytest.mark.parametrize("version", mostly_long("servers", ODD_VERSIONS, ["1%2F2", "a:b?x=1#2"]))
def test_a_version_that_other_tools_gave_can_still_be_managed(project: Project, version: str) -> None:
    odd(project.model_store, version)
    with Client.for_project(project) as client:
        client.register("odd-1.0.mar", initial_workers=0)
    name = f"odd:{version}"
    (project.root / "in.bin").write_bytes(b"hello")
    for arguments in (("scale", name, "--workers", "1"), ("predict", name, str(project.root / "in.bin"), "--json")):
        done = marsmith(project, *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert not set("\u202e\u200b") & set(done.stdout + done.stderr)
    with Client.for_project(project) as client:
        assert [each.model_version for each in client.describe("odd", version)] == [version]
    listed = marsmith(project, "models")
    assert "odd" in listed.stdout
    assert not set("\u202e\u200b") & set(listed.stdout)
    gone = marsmith(project, "unregister", name)
    assert gone.returncode == 0, gone.stderr
    (project.model_store / "odd-1.0.mar").unlink()


def test_a_version_with_a_slash_cannot_be_asked_for_and_that_is_said(project: Project) -> None:
    odd(project.model_store, "1.0-rc/1")
    refused = marsmith(project, "register", "odd-1.0.mar")
    assert refused.returncode != 0
    assert "'1.0-rc/1' is not a model version" in refused.stderr
    told = marsmith(project, "unregister", "odd:1.0-rc/1")
    assert told.returncode == 2
    assert "TorchServe cannot be asked for the version '1.0-rc/1'" in told.stderr
    (project.model_store / "odd-1.0.mar").unlink()


DAMAGE = ["", "[", "[" * 100_000, "{}", '{"pid": "1"}', '{"pid": 99999999999999999999, "created": 1}', "\xff", "null"]


@pytest.mark.parametrize("damages", [DAMAGE[:3], pytest.param(DAMAGE[3:], marks=long("servers"))])
def test_the_supervisor_outlives_a_damaged_state_and_fixes_it(project: Project, damages: list[str]) -> None:
    before, watched = run_state.read(project), supervisor_pid(project)
    for damage in damages:
        (project.run / run_state.FILE_NAME).write_bytes(damage.encode("latin-1"))

        def fixed() -> bool:
            try:
                return run_state.read(project) == before
            except MarsmithError:
                return False

        until(fixed, 60)
    assert supervisor_pid(project) == watched


def test_stop_ends_java_and_supervisor_whatever_is_damaged(project: Project) -> None:
    watched, java = supervisor_pid(project), run_state.read(project).pid
    for name in (run_state.FILE_NAME, supervisor_state.FILE_NAME, "config.properties", "key_file.json"):
        (project.run / name).write_text("[" * 100_000)
    (project.root / ".marsmith" / "state" / "served.json").write_text("[" * 100_000)
    project.server_config.write_text("\\u12\n")
    shutil.rmtree(project.root / "config")
    stopped = marsmith(project, "stop", named=False)
    assert stopped.returncode == 0, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not is_alive(watched)
    assert not is_alive(java)
    assert server_process.processes_of(project.run) == []
