"""What a user is told when the system refuses a file: by real refusals, of commands that are run as somebody else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from marsmith.file_errors import access_error
from marsmith.project import Project
from support.export_fixtures import write_tiny
from support.live_server import make_project, running, tiny_archive
from support.long_tests import mostly_long
from support.projects import REPOSITORY

IS_ROOT = os.geteuid() == 0
# Whoever runs the tests may be root, whom no permission bit stops. This user may read everything, as the test's Python
# may lie in a folder of root's, and write what its permissions let it.
AS_NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,+dac_read_search"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = make_project(tmp_path / "project", {"echo.mar": tiny_archive(tmp_path / "echo.mar")})
    shutil.copytree(REPOSITORY / "handlers", project.root / "handlers")
    (project.root / "export").mkdir()
    return write_tiny(project)


def marsmith(
    project: Project, *arguments: str, before: Sequence[str] = (), mount: str = "", after: str = "true"
) -> tuple[int, str]:
    """Run a verb, and return its exit code and stderr.

    Args:
        project: where.
        arguments: the verb and its own.
        before: a command that runs it.
        mount: what root mounts first, in a name space of the process's own.
        after: what root runs there behind it.
    """
    command = [*before, sys.executable, "-m", "marsmith", *arguments]
    if mount:
        command = [
            "unshare",
            "--mount",
            "bash",
            "-c",
            f'{mount} && "$@"; code=$?; {after}; exit $code',
            "bash",
            *command,
        ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}
    done = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def works(command: Sequence[str]) -> bool:
    """Whether a command is there and does what it says."""
    return shutil.which(command[0]) is not None and not subprocess.run(command, capture_output=True).returncode


def can_mount() -> bool:
    """Whether file systems can be mounted, in a name space of a process's own."""
    return works(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])


# In `make test` each verb meets one of the three obstacles that all of them can meet.
VERBS = {
    "export": ["export", "tiny"],
    "archive": ["archive", "tiny"],
    "serve": ["serve"],
    "serve in the foreground": ["serve", "--foreground"],
    "certificate": ["certificate"],
    "watch": ["watch", "tiny"],
    "deploy": ["deploy", "model_store/echo.mar"],
    "rollback": ["rollback", "echo"],
}


def is_one_line(errors: str, *words: str) -> bool:
    """Whether one error with a tip is told, last, that names all of this."""
    told = [line for line in errors.splitlines() if line.startswith("marsmith: error:")]
    tip = errors.splitlines()[-1]
    one = len(told) == 1 and tip.startswith("TIP: ") and "Traceback" not in errors
    return one and all(word in f"{told[0]} {tip}" for word in words)


@pytest.mark.parametrize("verb", mostly_long("setup", VERBS, ["watch", "rollback", "serve"]))
def test_a_file_in_the_place_of_the_folder_is_named(project: Project, verb: str) -> None:
    (project.root / ".marsmith").write_text("")
    code, errors = marsmith(project, *VERBS[verb])
    assert code == 1, errors
    assert is_one_line(errors, f"{project.root}/.marsmith is a file", "mv "), errors


@pytest.mark.skipif(not IS_ROOT or not works([*AS_NOBODY, "true"]), reason="nothing can be run as somebody else here")
@pytest.mark.parametrize("verb", mostly_long("setup", VERBS, ["archive", "deploy", "serve in the foreground"]))
def test_a_folder_of_somebody_else_is_named_with_its_owner_and_with_whom_it_refuses(
    project: Project, verb: str
) -> None:
    (project.root / ".marsmith").mkdir()
    code, errors = marsmith(project, *VERBS[verb], before=AS_NOBODY)
    assert code == 1, errors
    owner = f"{project.root}/.marsmith belongs to root (mode 0755)"
    assert is_one_line(errors, "cannot be written by the user nobody (uid 65534)", owner, "chown"), errors


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a folder away")
def test_a_run_folder_of_somebody_else_is_named_with_both(project: Project) -> None:
    project.run.mkdir(parents=True)
    os.chown(project.run, 65534, 65534)
    code, errors = marsmith(project, "serve")
    assert code == 1
    assert is_one_line(errors, f"{project.run} belongs to the user nobody", "would run as root", "chown -R root"), (
        errors
    )


@pytest.mark.skipif(not IS_ROOT or not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize("verb", mostly_long("setup", VERBS, ["export", "certificate", "serve"]))
def test_a_file_system_that_is_read_only_is_named(project: Project, verb: str) -> None:
    (project.root / ".marsmith").mkdir()
    mount = f"mount --bind {project.root} {project.root} && mount -o remount,ro,bind {project.root}"
    code, errors = marsmith(project, *VERBS[verb], mount=mount)
    assert code == 1, errors
    assert is_one_line(errors, f"{project.root}/.marsmith", "read-only file system", "findmnt"), errors


@pytest.mark.skipif(not IS_ROOT or not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize(
    "verb", mostly_long("export", ["export", "archive", "serve", "certificate"], ["export", "serve", "certificate"])
)
def test_a_full_disk_is_named(project: Project, verb: str) -> None:
    (project.root / ".marsmith").mkdir()
    full = f"{project.root}/.marsmith"
    # One page for a folder's sake, none for what comes into it.
    mount = f"mount -t tmpfs -o size=4k none {full} && (cat /dev/zero > {full}/ballast 2>/dev/null || true)"
    code, errors = marsmith(project, *VERBS[verb], mount=mount)
    assert code == 1, errors
    assert is_one_line(errors, "no space is left on the disk", "df -h"), errors


@pytest.mark.skipif(not IS_ROOT or not can_mount(), reason="no file system can be mounted here")
def test_a_model_store_that_is_read_only_is_named(project: Project, tmp_path: Path) -> None:
    store = project.model_store
    mount = f"mount --bind {store} {store} && mount -o remount,ro,bind {store}"
    code, errors = marsmith(project, "archive", "tiny", mount=mount)
    assert code == 1
    assert is_one_line(errors, str(store), "read-only"), errors


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "cannot be written by"),
        (errno.ENOENT, "No such file"),
        (errno.EISDIR, "a file is expected"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EIO, "does not answer"),
    ],
)
def test_errors_about_a_path_are_told_in_words(tmp_path: Path, number: int, words: str) -> None:
    told = access_error(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert told is not None
    assert str(tmp_path / "file") in told.message
    assert words in told.message


def test_where_there_is_no_temporary_folder_it_is_said() -> None:
    told = access_error(FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/a', '/b']"))
    assert told is not None
    assert "no temporary folder" in told.message
    assert told.tip == "set TMPDIR to one"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        OSError("odd"),
        OSError(errno.EBADF, "Bad file descriptor"),
    ],
)
def test_what_is_not_about_a_file_keeps_its_traceback(error: OSError) -> None:
    assert access_error(error) is None


@pytest.mark.live
@pytest.mark.skipif(not IS_ROOT or not can_mount(), reason="no file system can be mounted here")
def test_a_change_that_cannot_be_remembered_holds_and_says_so(project: Project) -> None:
    tiny_archive(project.model_store / "echo-2.mar", version="2.0")
    mount = f"mount --bind {project.root} {project.root} && mount -o remount,ro,bind {project.root}"
    with running(project):
        for verb in (
            ["set-default", "echo", "1.0"],
            ["unregister", "echo:2.0", "--now"],
            ["register", "echo-2.mar"],
            ["scale", "echo:2.0", "--workers", "1"],
            ["set-default", "echo", "2.0"],
        ):
            code, errors = marsmith(project, *verb, mount=mount)
            told = [line for line in errors.splitlines() if "only if the supervisor" in line]
            assert (code, len(told), "Traceback" in errors) == (0, 1, False), (verb, errors)
            assert f"{project.root}/.marsmith/state" in told[0]
            assert "read-only file system" in told[0]
            assert "TIP: its file system is mounted read-only: findmnt" in errors
        if works([*AS_NOBODY, "true"]):
            code, errors = marsmith(project, "set-default", "echo", "1.0", before=AS_NOBODY)
            assert (code, "cannot be written by the user nobody" in errors) == (0, True), errors


@pytest.mark.skipif(not IS_ROOT or not works([*AS_NOBODY, "true"]), reason="nothing can be run as somebody else here")
def test_a_project_is_not_made_in_a_folder_of_somebody_else(project: Project) -> None:
    (project.root / "new").mkdir()
    code, errors = marsmith(project, "new", "new/cats", before=AS_NOBODY)
    assert code == 1, errors
    assert is_one_line(errors, "new/cats cannot be written by the user nobody", "belongs to root", "chown"), errors
    assert not any((project.root / "new").iterdir())


@pytest.mark.skipif(not IS_ROOT or not can_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize(
    ("options", "words"),
    [("size=40k", ("no space is left on the disk", "df -h")), ("ro", ("read-only file system", "findmnt"))],
)
def test_a_project_is_made_whole_or_not_at_all(project: Project, options: str, words: tuple[str, str]) -> None:
    folder = project.root / "new"
    folder.mkdir()
    mount, after = f"mount -t tmpfs -o {options} none {folder}", f"ls -A {folder} > {project.root}/left"
    code, errors = marsmith(project, "new", "new/cats", mount=mount, after=after)
    assert code == 1, errors
    assert is_one_line(errors, f"{folder}/cats", *words), errors
    assert (project.root / "left").read_text() == ""
