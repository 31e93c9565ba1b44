"""`make clean` and `make distclean` in a copy of the project that was never set up, below a path with a space."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from support.live_server import is_alive
from support.projects import REPOSITORY

KEPT = (
    *(".marsmith/tls/key.pem", ".marsmith/deploy/tiny.json", ".marsmith/state/served.json"),
    *("model_store/foreign-1.0.mar", "model_store/tiny-1.0.mar.sig", "model_store/README.md"),
)
REBUILT = (
    *(".marsmith/exports/tiny/model.pt", ".marsmith/archives/tiny-1.0.mar.json", ".marsmith/run/key_file.json"),
    *("model_store/tiny-1.0.mar", "build/lib", "dist/marsmith.whl"),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "My Project"
    root.mkdir()
    shutil.copy(REPOSITORY / "Makefile", root)
    shutil.copytree(REPOSITORY / "tools", root / "tools")
    for name in (*KEPT, *REBUILT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def make(root: Path, target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"FORCE", "MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        ["make", target],
        cwd=root,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def there(root: Path, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if (root / name).exists()]


def test_clean_needs_no_set_up_and_keeps_what_cannot_be_built_again(root: Path) -> None:
    done = make(root, "clean")
    assert done.returncode == 0, done.stderr
    assert there(root, REBUILT) == []
    assert there(root, KEPT) == list(KEPT)
    assert not (root / ".venv").exists()
    assert make(root, "clean").returncode == 0


@pytest.mark.parametrize("target", ["clean", "distclean"])
def test_a_server_that_runs_is_stopped_also_without_the_set_up_that_started_it(root: Path, target: str) -> None:
    run = f"{root.resolve()}/.marsmith/run"
    others = {"MARSMITH_RUN_FOLDER": f"{run}2"}
    with (
        subprocess.Popen(["sleep", "1000"], env={**os.environ, "MARSMITH_RUN_FOLDER": run}) as server,
        subprocess.Popen(["sleep", "1000"], env={**os.environ, "MARSMITH_SUPERVISED_FOLDER": run}) as supervisor,
        subprocess.Popen(["sleep", "1000"], env={**os.environ, **others}) as other,
    ):
        try:
            done = make(root, target, FORCE="1")
            assert done.returncode == 0, done.stderr
            assert not is_alive(server.pid)
            assert not is_alive(supervisor.pid)
            assert is_alive(other.pid)
        finally:
            for process in (server, supervisor, other):
                process.kill()
    assert not (root / ".marsmith" / "run").exists()


def test_distclean_refuses_where_nobody_can_be_asked(root: Path) -> None:
    done = make(root, "distclean")
    assert done.returncode != 0
    assert "FORCE=1" in done.stderr
    assert ".marsmith" in done.stdout
    assert there(root, (*KEPT, *REBUILT)) == [*KEPT, *REBUILT]


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_distclean_asks_on_a_terminal(root: Path, answer: str, removed: bool) -> None:
    (root / ".venv" / "lib").mkdir(parents=True)
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        done = subprocess.run(
            ["make", "distclean"], cwd=root, stdin=theirs, capture_output=True, text=True, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert (done.returncode == 0) is removed
    expected = ["model_store/README.md"] if removed else [*KEPT, *REBUILT]
    assert there(root, (*KEPT, *REBUILT)) == expected
    assert (root / ".venv").exists() is not removed


def test_distclean_removes_everything_where_it_is_forced(root: Path) -> None:
    assert make(root, "distclean", FORCE="1").returncode == 0
    assert sorted(path.name for path in root.iterdir()) == ["Makefile", "model_store", "tools"]
