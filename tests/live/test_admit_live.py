"""A real TorchServe whose archives were tampered with: they are not served, registered, deployed or brought back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from marsmith import run_state
from marsmith.archive.signature import sign, signature_path
from marsmith.client import Client
from marsmith.errors import ClientError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.server import launch, lifecycle
from support.live_server import make_project, until
from support.long_tests import mostly_long
from support.pictures import picture
from support.signing_keys import write_keys
from support.tampered_archives import TAMPERED, WRITING, change_weights, shipped_archive

RED = picture(255, 0, 0)
# Under a handler of the user's own nothing in the worker proves these.
OWN = {"weights", "bytecode"}
# A handler that writes where it works, and names that our own code once took for something special.
WRITES = {
    "writing_handler.py": WRITING,
    "core/word.txt": b"asked\n",
    "core/x.py": b"x = 1\n",
    "core.py": b"x = 1\n",
    "core.json": b"{}",
}


def marsmith(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "marsmith", *arguments],
        env=os.environ | {PROJECT_VARIABLE: str(project.root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def marker(project: Project) -> Path:
    return project.root / "marker"


def tampered_version(project: Project, folder: Path, number: int, kind: str) -> Path:
    """Write version ``<number>.<place>`` and tamper with it in one way."""
    version = f"{number}.{list(TAMPERED).index(kind)}"
    path = shipped_archive(folder / f"tiny-{version}.mar", version=version, own=kind in OWN)
    TAMPERED[kind][0](path, marker(project))
    return path


def versions(project: Project) -> dict[str, Any]:
    """Return what is registered, by version."""
    listed = json.loads(marsmith(project, "status", "--json").stdout)["versions"]
    return {each["version"]: each for each in listed}


def answers(project: Project, version: str | None = None) -> bool:
    with Client.for_project(project) as client:
        try:
            client.predict("tiny", RED, version=version, content_type="image/png")
        except ClientError:
            return False
    return True


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with a sound version, and one more for each way to tamper, whose server runs with a supervisor."""
    folder = tmp_path_factory.mktemp("admit")
    project = make_project(folder / "p", {"tiny-1.0.mar": shipped_archive(folder / "tiny-1.0.mar")})
    _, public = write_keys(project.root, "team")
    project.settings_file.write_text(f"trusted_keys: [{public.name}]\n")
    for kind in TAMPERED:
        tampered_version(project, project.model_store, 9, kind)
    refused = marsmith(project, "serve", "--strict")
    assert refused.returncode == 1
    assert all(named in refused.stderr for _, named in TAMPERED.values())
    started = marsmith(project, "serve", "--restart", "always")
    assert started.returncode == 0, started.stderr
    (project.root / "started.txt").write_text(started.stderr)
    yield project
    lifecycle.stop(project, timeout_s=0)


def test_serve_leaves_out_each_with_its_reason_and_runs_nothing_of_it(project: Project) -> None:
    said = (project.root / "started.txt").read_text().splitlines()
    lines = {line.split()[2]: line for line in said if line.startswith("left out: ")}
    assert len(lines) == len(TAMPERED)
    for place, (_, named) in enumerate(TAMPERED.values()):
        assert named in lines[f"tiny-9.{place}.mar:"]
    assert versions(project).keys() == {"1.0"}
    assert answers(project)
    assert not marker(project).exists()


def test_python_writes_no_bytecode_into_an_unpacked_archive(project: Project) -> None:
    unpacked = launch.temporary_folder(project)
    assert list(unpacked.rglob("marsmith_handler/proof.py"))
    assert list(unpacked.rglob("*.pyc")) == []


# The start of the server refuses every kind, by the same decision.
@pytest.mark.parametrize("kind", mostly_long("servers", TAMPERED, ["bytecode"]))
def test_register_refuses_it(project: Project, kind: str) -> None:
    path = tampered_version(project, project.model_store, 8, kind)
    done = marsmith(project, "register", path.name)
    path.unlink()
    assert done.returncode == 1
    assert TAMPERED[kind][1] in done.stderr
    assert versions(project).keys() == {"1.0"}
    assert not marker(project).exists()


@pytest.mark.parametrize("kind", mostly_long("servers", TAMPERED, ["key and sums"]))
def test_deploy_refuses_it_and_leaves_nothing_in_the_store(project: Project, tmp_path: Path, kind: str) -> None:
    before = sorted(project.model_store.iterdir())
    done = marsmith(project, "deploy", str(tampered_version(project, tmp_path, 7, kind)), "--watch-s", "0")
    assert done.returncode == 1
    assert TAMPERED[kind][1] in done.stderr
    assert versions(project).keys() == {"1.0"}
    assert sorted(project.model_store.iterdir()) == before
    assert not marker(project).exists()


def test_a_version_that_writes_where_it_works_survives_a_crash_of_its_worker_and_takes_more(
    project: Project, tmp_path: Path
) -> None:
    archive = shipped_archive(tmp_path / "writing.mar", version="2.0", more=WRITES)
    sign(archive, project.root / "team.pem")
    done = marsmith(project, "deploy", str(archive), "--watch-s", "0")
    assert done.returncode == 0, done.stderr
    copy = project.model_store / "tiny-2.0.mar"
    assert signature_path(copy).read_bytes() == signature_path(archive).read_bytes()
    assert answers(project, "2.0")
    assert list(launch.temporary_folder(project).rglob("requests.log"))
    with Client.for_project(project) as client:
        [worker] = client.describe("tiny", "2.0")[0].workers
        psutil.Process(worker.pid).kill()
        until(lambda: [each.pid for each in client.describe("tiny", "2.0")[0].workers] != [worker.pid])
        until(lambda: client.describe("tiny", "2.0")[0].is_ready)
        assert answers(project, "2.0")
        client.scale("tiny", version="2.0", min_workers=2, max_workers=2)
        until(lambda: client.describe("tiny", "2.0")[0].ready_workers == 2)
        client.scale("tiny", version="2.0", min_workers=1, max_workers=1)


def test_rollback_refuses_a_file_that_was_tampered_with_since(project: Project) -> None:
    file = project.model_store / "tiny-1.0.mar"
    kept = shutil.copy(file, project.root / "kept.mar")
    with Client.for_project(project) as client:
        client.unregister("tiny", "1.0")
    change_weights(file, marker(project))
    done = marsmith(project, "rollback", "tiny", "--to", "1.0")
    assert done.returncode != 0
    assert "tiny-1.0.mar" in done.stderr
    assert versions(project).keys() == {"2.0"}
    assert answers(project)
    Path(kept).replace(file)
    done = marsmith(project, "rollback", "tiny", "--to", "1.0")
    assert done.returncode == 0, done.stderr
    assert versions(project)["1.0"]["default"]


def test_a_file_that_was_replaced_under_a_running_server_is_not_served_after_a_crash(
    project: Project, tmp_path: Path
) -> None:
    own = shipped_archive(tmp_path / "own.mar", version="3.0", own=True)
    sign(own, project.root / "team.pem")
    assert marsmith(project, "deploy", str(own), "--watch-s", "0").returncode == 0
    assert answers(project, "3.0")
    file = project.model_store / "tiny-3.0.mar"
    change_weights(file, marker(project))
    before = run_state.read(project)
    os.kill(before.pid, signal.SIGKILL)

    def runs_again() -> bool:
        state = run_state.read(project) if (project.run / run_state.FILE_NAME).exists() else before
        return state.pid != before.pid and state.ready

    until(runs_again)
    assert (answers(project), answers(project, "3.0"), answers(project, "1.0")) == (False, False, True)
    [reason] = [each.reason for each in run_state.read(project).left_out if each.file == file.name]
    assert "changed: member 'model.pt'" in reason
    assert "not the file that was signed" in reason


def test_where_a_signature_is_required_an_unsigned_archive_is_not_registered(project: Project) -> None:
    settings = project.settings_file.read_text()
    project.settings_file.write_text(f"signatures: required\n{settings}")
    file = shipped_archive(project.model_store / "tiny-6.0.mar", version="6.0")
    done = marsmith(project, "register", file.name)
    assert done.returncode == 1
    assert "tiny-6.0.mar.sig: no such signature" in done.stderr
    sign(file, project.root / "team.pem")
    done = marsmith(project, "register", file.name)
    assert done.returncode == 0, done.stderr
    project.settings_file.write_text(settings)
