"""A real TorchServe whose archives are replaced: no restart and no start serves other bytes under the same name."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.archive import Archive
from marsmith.project import Project
from marsmith.state import served_file
from marsmith.state.served import ArchiveBytes
from support.command import asked, marsmith
from support.live_server import make_project, tiny_archive, until

OTHER = "def handle(data, context):\n    return [b'other'] * len(data or [])\n"
VERSION = ("echo", "2.0")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project that has two versions of a model, the newer one by default."""
    folder = tmp_path_factory.mktemp("bytes")
    archives = {
        "echo-1.0.mar": tiny_archive(folder / "one.mar"),
        "echo-2.0.mar": tiny_archive(folder / "two.mar", version="2.0"),
    }
    project = make_project(folder / "p", archives)
    yield project
    marsmith(project, "stop")


def digest(path: Path) -> str:
    return Archive.open(path).digest()


def test_a_replaced_default_is_left_out_of_restart_and_start_and_comes_back_with_its_bytes_or_when_let_go(
    project: Project,
) -> None:
    stored = project.model_store / "echo-2.0.mar"
    kept, old = stored.read_bytes(), digest(stored)
    started = marsmith(project, "serve")
    assert (started.returncode, "left out" in started.stderr) == (0, False), started.stderr
    state = served_file.read(project)
    assert state.models["echo"].versions["2.0"].bytes == ArchiveBytes(old, ours=False)
    tiny_archive(stored, version="2.0", handler=OTHER)

    # The server dies: 2.0 is not brought back from other bytes, and 1.0 does not take its place.
    first = run_state.read(project)
    os.kill(first.pid, signal.SIGKILL)

    def runs_again() -> bool:
        state = run_state.read(project) if (project.run / run_state.FILE_NAME).exists() else first
        return state.pid != first.pid and state.ready

    until(runs_again)
    assert (asked(project, "echo"), asked(project, "echo/2.0"), asked(project, "echo/1.0")) == (503, 503, 200)
    [left] = run_state.read(project).left_out
    assert left.file == stored.name
    assert old[:16] in left.reason
    assert digest(stored)[:16] in left.reason

    assert marsmith(project, "stop").returncode == 0
    started = marsmith(project, "serve")
    assert started.returncode == 0, started.stderr
    assert "left out: echo-2.0.mar: echo:2.0 is registered with SHA-256" in started.stderr
    assert asked(project, "echo") == 503
    assert marsmith(project, "stop").returncode == 0

    # One way out: what it was. The other: to let go of it.
    other = stored.read_bytes()
    stored.write_bytes(kept)
    assert "left out" not in marsmith(project, "serve").stderr
    assert asked(project, "echo") == 200
    assert marsmith(project, "stop").returncode == 0
    stored.write_bytes(other)
    assert marsmith(project, "unregister", "echo:2.0").stdout.endswith("and echo:1.0 answers\n")
    started = marsmith(project, "serve")
    assert "echo:2.0 is new in the store; the default stays 1.0" in started.stderr
    known = served_file.read(project).version(VERSION)
    assert known
    assert known.bytes == ArchiveBytes(digest(stored), ours=False)
