"""Sharing Java's classes between starts: when there is a file, whose it is, and that a real server maps it."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from marsmith import child_processes
from marsmith.config.properties import ENCODING, as_mapping, parse_properties
from marsmith.server import launch
from marsmith.server import processes as server_process
from marsmith.server.class_sharing import ClassSharing, class_sharing
from marsmith.server.java import find_java
from support.live_server import make_project, running, tiny_archive

DEADLINE_S = 480.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "marsmith" / "java"


@pytest.fixture
def jar(tmp_path: Path) -> Path:
    (tmp_path / "jars").mkdir()
    (tmp_path / "jars" / "a.jar").write_bytes(b"a jar")
    return tmp_path / "jars" / "a.jar"


def sharing_of(jar: Path, *options: str) -> ClassSharing | None:
    return class_sharing(find_java().executable, [f"{jar.parent}/*"], options)


def file_of(jar: Path, *options: str) -> Path:
    found = sharing_of(jar, *options)
    assert found is not None
    return found.file


def test_another_java_jar_or_heap_has_another_file_and_a_property_has_not(jar: Path) -> None:
    first = file_of(jar)
    assert first == file_of(jar)
    assert first == file_of(jar, "-Dlog4j.configurationFile=file:///somewhere/else.xml")
    assert first != file_of(jar, "-Xmx256m")
    os.utime(jar, (1, 1))
    assert first != file_of(jar)
    (jar.parent / "b.jar").write_bytes(b"")
    assert file_of(jar) not in {first, file_of(jar, "-Xmx256m")}


@pytest.mark.parametrize(
    "option", ["-Xshare:off", "-XX:SharedArchiveFile=own.jsa", "-XX:+AutoCreateSharedArchive", "-javaagent:metrics.jar"]
)
def test_who_has_own_plans_for_classes_is_left_alone(option: str, jar: Path) -> None:
    assert sharing_of(jar, "-Xmx1g", option) is None


def test_without_a_place_that_is_ours_there_is_no_file(
    jar: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert sharing_of(jar) is None
    cache.unlink()
    assert sharing_of(jar) is not None
    for folder in (cache, cache.parent):
        folder.chmod(0o770)
        assert sharing_of(jar) is None
        folder.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.chdir(tmp_path)
    assert sharing_of(jar) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert sharing_of(jar) is None


def test_the_folder_is_private_and_a_file_that_others_may_write_is_not_used(jar: Path, cache: Path) -> None:
    sharing = sharing_of(jar)
    assert sharing is not None
    assert [folder.stat().st_mode & 0o777 for folder in (cache, cache.parent)] == [0o700, 0o700]
    wanted = ["-XX:DumpLoadedClassList=list"]
    assert sharing.start_options(Path("list")) == wanted
    sharing.file.write_bytes(b"classes")
    sharing.file.chmod(0o622)
    assert sharing.start_options(Path("list")) == wanted
    sharing.file.chmod(0o600)
    os.utime(sharing.file, (1, 1))
    assert sharing.start_options(Path("list")) == [f"-XX:SharedArchiveFile={sharing.file}"]
    assert sharing.file.stat().st_mtime > 1


def test_what_java_refuses_is_tried_once_a_day(jar: Path, tmp_path: Path) -> None:
    sharing = sharing_of(jar, "-XX:NoSuchOption")
    assert sharing is not None
    (tmp_path / "list").write_text("java/lang/Object id: 0\n")
    assert not sharing.make(tmp_path / "list")
    assert sharing.start_options(tmp_path / "list") == []
    assert "NoSuchOption" in sharing.file.with_suffix(".failed").read_text()
    assert not list(sharing.file.parent.glob("*.partial"))
    assert not list(sharing.file.parent.glob("*.classes"))
    os.utime(sharing.file.with_suffix(".failed"), (1, 1))
    assert sharing.start_options(tmp_path / "list") == [f"-XX:DumpLoadedClassList={tmp_path / 'list'}"]


def test_files_of_a_java_that_is_gone_are_removed(jar: Path, tmp_path: Path) -> None:
    sharing = sharing_of(jar)
    assert sharing is not None
    old, recent, left = (sharing.file.with_name(f"torchserve-{name}") for name in ("1.jsa", "2.jsa", "3.partial"))
    for file in (old, recent, left):
        file.write_bytes(b"")
    os.utime(old, (1, 1))
    (tmp_path / "list").write_text("no class at all\njava/la")
    sharing.make(tmp_path / "list")
    assert (old.exists(), recent.exists(), left.exists()) == (False, True, False)


def start_of_java_with(java: Path, sharing: ClassSharing) -> str:
    """Return what Java says about the file when it is told to insist on it."""
    command = [str(java), "-Xshare:on", "-XX:+VerifySharedSpaces", f"-XX:SharedArchiveFile={sharing.file}"]
    command += [*sharing.options, "-cp", sharing.class_path, "-version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.returncode} {done.stdout}"


@pytest.mark.live
def test_the_second_server_maps_the_classes_that_the_first_has_loaded(tmp_path: Path, cache: Path) -> None:
    archive = tiny_archive(tmp_path / "echo.mar")
    project = make_project(tmp_path / "project", {"echo.mar": archive})
    late = time.monotonic() + DEADLINE_S
    with running(project) as state:
        assert str(cache) not in Path(f"/proc/{state.pid}/maps").read_text()
        while not (files := list(cache.glob("*.jsa"))):
            assert time.monotonic() < late
            time.sleep(0.1)
    assert len(files) == 1
    home = launch.torchserve_home()
    assert home is not None
    config = as_mapping(parse_properties(project.server_config.read_text(encoding=ENCODING)))
    options = launch.java_options(config)
    sharing = class_sharing(find_java().executable, launch.class_path(home, config), options)
    assert sharing is not None
    assert sharing.file == files[0]
    assert start_of_java_with(find_java().executable, sharing).startswith("0 ")
    with running(project) as state:
        assert str(files[0]) in Path(f"/proc/{state.pid}/maps").read_text()
        assert not (project.run / "tmp" / "classes.txt").exists()
    # Java itself sees that a file is none, and starts without it.
    files[0].write_bytes(files[0].read_bytes()[:1_000_000])
    with running(project) as state:
        assert str(files[0]) not in Path(f"/proc/{state.pid}/maps").read_text()
    assert server_process.processes_of(project.run) == []


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.live
def test_stopping_the_server_ends_the_making_too(tmp_path: Path, cache: Path) -> None:
    project = make_project(tmp_path / "project", {"echo.mar": tiny_archive(tmp_path / "echo.mar")})
    with running(project):
        # It may have been quick.
        making = [
            one for one in server_process.processes_of(project.run) if "marsmith.server.class_sharing" in command(one)
        ]
        assert making or any(cache.glob("*.jsa"))
    assert server_process.processes_of(project.run) == []


def test_what_cannot_be_made_costs_nobody_a_server(jar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sharing = sharing_of(jar)
    assert sharing is not None
    (tmp_path / "list").write_text("java/lang/Object id: 0\n")
    monkeypatch.setattr("marsmith.server.class_sharing.sys.executable", str(tmp_path / "no-python"))
    sharing.make_in_background(tmp_path / "list", {}, child_processes.start)
    assert list(sharing.file.parent.iterdir()) == []
