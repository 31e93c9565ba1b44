"""What a start serves, what is remembered of a server, when it is started again, and what systemd hears of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsmith import run_state
from marsmith.archive.store import StoredArchive, open_stored
from marsmith.cli import main
from marsmith.client.management import VersionStatus
from marsmith.errors import FormatError, UsageError
from marsmith.project import PROJECT_VARIABLE
from marsmith.run_state import NewerStateError, RunState
from marsmith.server import lifecycle, supervisor_state
from marsmith.server import processes as server_process
from marsmith.server.served import next_state, plan_serving, version_order
from marsmith.server.supervisor import RestartPolicy, parse_restart, render_restart
from marsmith.server.systemd import ServiceManager
from marsmith.server.worker_watch import WorkerWatch
from marsmith.state import served_file
from marsmith.state.served import (
    ArchiveBytes,
    Parameters,
    ServedModel,
    ServedVersion,
    ServerState,
    Unregistered,
    parse_state,
    render_state,
)
from support.live_server import make_project, tiny_archive
from support.states import ONE, state_of, status

TWO = replace(ONE, min_workers=2, max_workers=2)

counts = st.integers(0, 1000)
parameters = st.builds(Parameters, *[counts] * 6)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_\-.]{0,8}", fullmatch=True)
contents = st.none() | st.builds(ArchiveBytes, st.text("0123456789abcdef", min_size=64, max_size=64), st.booleans())
served_versions = st.builds(ServedVersion, st.text(max_size=20), parameters, st.none() | parameters, contents)


@st.composite
def models(draw: st.DrawFn) -> ServedModel:
    versions = draw(st.dictionaries(st.text(min_size=1, max_size=8), served_versions, min_size=1, max_size=3))
    return ServedModel(draw(st.sampled_from(sorted(versions))), versions)


states = st.builds(
    ServerState,
    st.dictionaries(names, models(), max_size=3),
    st.dictionaries(
        st.tuples(names, st.text(max_size=8)), st.builds(Unregistered, st.text(max_size=20), contents), max_size=3
    ),
)


def stored(folder: Path, *versions: str, name: str = "echo") -> list[StoredArchive]:
    folder.mkdir(exist_ok=True)
    files = [tiny_archive(folder / f"{name}-{version}.mar", name=name, version=version) for version in versions]
    return [open_stored(file) for file in files]


@settings(max_examples=60, deadline=None)
@given(states)
def test_a_state_is_parsed_back_as_it_was_and_equal_states_give_equal_texts(state: ServerState) -> None:
    text = render_state(state)
    assert parse_state(text) == state
    assert render_state(parse_state(text)) == text


def test_a_state_that_an_earlier_marsmith_wrote_is_read() -> None:
    running = dict(zip(Parameters.__dataclass_fields__, (1, 1, 1, 1, 20, 60), strict=True))
    version = {"archive": "echo-1.0.mar", "running": running, "configured": None}
    models = {"echo": {"default": "1.0", "versions": {"1.0": version}}}
    left = [{"model": "echo", "version": "2.0", "archive": "echo-2.0.mar"}]
    assert parse_state(json.dumps({"format": 1, "models": models, "unregistered": left})) == ServerState(
        {"echo": ServedModel("1.0", {"1.0": ServedVersion("echo-1.0.mar", ONE, None)})},
        {("echo", "2.0"): Unregistered("echo-2.0.mar")},
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "has no format"),
        ('{"format": 2, "models": {}, "unregistered": []}', "is of format 2"),
        ('{"format": 1, "models": {}}', "has no unregistered"),
        ('{"format": 1, "models": {"-m": {"default": "1", "versions": {}}}, "unregistered": []}', "not a model name"),
        ('{"format": 1, "models": {"a": {"default": "1", "versions": {}}}, "unregistered": []}', "not among its"),
        ('{"format": 1, "models": {}, "unregistered": [7]}', "has no model"),
    ],
)
def test_a_damaged_state_is_refused_with_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=problem):
        parse_state(text)


def test_a_damaged_state_is_put_aside_and_said(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    path = served_file.state_file(project)
    path.parent.mkdir(parents=True)
    for number in (1, 2):
        path.write_bytes(b"\xff" if number == 1 else b'{"format": 1')
        remembered = served_file.load(project)
        assert remembered.state is None
        assert remembered.note is not None
        assert f"served.json.damaged-{number}" in remembered.note
    assert sorted(file.name for file in path.parent.iterdir()) == ["served.json.damaged-1", "served.json.damaged-2"]


def test_versions_are_ordered_as_people_count() -> None:
    ordered = ["1.0", "1.9", "1.10", "2.0rc1", "2.0", "2.0.1"]
    shuffled = sorted(ordered, key=len)
    assert sorted(shuffled, key=version_order) == ordered


def test_without_a_state_everything_is_served_and_the_newest_version_is_the_default(tmp_path: Path) -> None:
    serving = plan_serving(stored(tmp_path, "1.9", "1.10", "1.2"), None, {})
    assert serving.defaults == {"echo": "1.10"}
    assert [archive.version[1] for archive in serving.archives] == ["1.10", "1.2", "1.9"]
    assert serving.notes == ()


def test_a_new_archive_is_served_and_the_default_stays(tmp_path: Path) -> None:
    serving = plan_serving(stored(tmp_path, "1.0", "2.0"), state_of("1.0", {"1.0": ONE}), {})
    assert serving.defaults == {"echo": "1.0"}
    assert [archive.version[1] for archive in serving.archives] == ["1.0", "2.0"]
    assert serving.notes == ("echo:2.0 is new in the store; the default stays 1.0",)


def test_after_a_crash_exactly_what_ran_is_served(tmp_path: Path) -> None:
    serving = plan_serving(stored(tmp_path, "1.0", "2.0"), state_of("1.0", {"1.0": ONE}), {}, with_new=False)
    assert [archive.version[1] for archive in serving.archives] == ["1.0"]


def test_a_version_that_was_unregistered_stays_so(tmp_path: Path) -> None:
    state = state_of("1.0", {"1.0": ONE}, **{"2.0": "echo-2.0.mar"})
    serving = plan_serving(stored(tmp_path, "1.0", "2.0"), state, {})
    assert [archive.version[1] for archive in serving.archives] == ["1.0"]
    assert serving.notes == ("echo:2.0 was unregistered before the restart: marsmith register echo-2.0.mar",)


def test_a_default_whose_archive_has_gone_is_replaced_by_the_newest_that_was_served(tmp_path: Path) -> None:
    state = state_of("3.0", {"1.0": ONE, "2.0": ONE, "3.0": ONE})
    serving = plan_serving(stored(tmp_path, "1.0", "2.0", "9.0"), state, {})
    assert serving.defaults == {"echo": "2.0"}
    assert "echo:3.0 is not served: its archive echo-3.0.mar has left the store" in serving.notes
    assert "echo:3.0 was the default and cannot be served: 2.0 is the default now" in serving.notes


def test_workers_set_at_run_time_come_back_unless_the_files_say_something_else_since(tmp_path: Path) -> None:
    archives = stored(tmp_path, "1.0")
    state = state_of("1.0", {"1.0": TWO})
    version = ("echo", "1.0")
    assert plan_serving(archives, state, {version: ONE}).workers == {version: (2, 2)}
    assert plan_serving(archives, state, {version: TWO}).workers == {}
    three = replace(ONE, min_workers=3, max_workers=3)
    changed = plan_serving(archives, state, {version: three})
    assert changed.workers == {}
    assert changed.notes == ("echo:1.0 has a new configuration: 3 workers instead of 2",)


def test_what_was_unregistered_is_remembered_while_its_archive_lies_in_the_store() -> None:
    before = state_of("1.0", {"1.0": ONE, "2.0": ONE})
    after = next_state(before, [status("2.0", default=True, workers=2)], {}, lambda _: True)
    assert after == ServerState(
        {"echo": ServedModel("2.0", {"2.0": ServedVersion("echo-2.0.mar", TWO, ONE)})},
        {("echo", "1.0"): Unregistered("echo-1.0.mar")},
    )
    assert next_state(after, [status("2.0", default=True)], {}, lambda _: False).unregistered == {}
    again = next_state(after, [status("1.0"), status("2.0", default=True)], {}, lambda _: True)
    assert again.unregistered == {}


def test_a_version_that_never_had_a_ready_worker_is_not_remembered() -> None:
    seen = [status("1.0", default=True), status("2.0", ready=False)]
    assert next_state(None, seen, {}, lambda _: True).served() == [("echo", "1.0")]
    lost = next_state(state_of("1.0", {"1.0": ONE}), [status("1.0", default=True, ready=False)], {}, lambda _: True)
    assert lost.served() == [("echo", "1.0")]


def test_a_worker_with_another_process_was_started_again_and_one_without_is_waited_for() -> None:
    def with_pid(pid: int, *, ready: bool = True) -> list[VersionStatus]:
        seen = status("1.0", ready=ready)
        return [replace(seen, workers=(replace(seen.workers[0], pid=pid),))]

    watch = WorkerWatch()
    assert watch.look(with_pid(50), 0.0) == []
    assert watch.look(with_pid(-1, ready=False), 2.0) == []
    assert watch.look(with_pid(-1, ready=False), 40.0) == ["echo:1.0 has had 0 of 1 workers ready for 38 s"]
    assert watch.look(with_pid(-1, ready=False), 80.0) == []
    assert watch.look(with_pid(51), 90.0) == [
        "worker 9000 of echo:1.0 died (pid 50) and was restarted (pid 51)",
        "echo:1.0 has 1 of 1 workers ready again",
    ]
    watch.forget()
    assert watch.look(with_pid(52), 91.0) == []
    assert watch.restarts == {"echo:1.0": 1}


def test_delays_grow_and_rapid_failures_come_to_an_end() -> None:
    delays = [RestartPolicy(4).delay_s(failures) for failures in range(1, 6)]
    assert delays == [0.5, 1.0, 2.0, 4.0, None]
    assert RestartPolicy(0).delay_s(1) is None
    assert RestartPolicy(None).delay_s(10_000) == 30.0


@pytest.mark.parametrize("text", ["always", "0", "7"])
def test_a_restart_policy_is_parsed_back(text: str) -> None:
    assert render_restart(parse_restart(text)) == text


@pytest.mark.parametrize("text", ["-1", "", "sometimes", "1.5", "٣"])
def test_another_restart_policy_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="neither a number nor 'always' nor 'no'"):
        parse_restart(text)


def test_a_json_log_goes_with_the_foreground_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PROJECT_VARIABLE, str(make_project(tmp_path / "p").root))
    assert main(["serve", "--log", "json"]) == 2
    assert main(["status", "--watch", "--interval", "0"]) == 2
    assert "--log json goes with --foreground" in capsys.readouterr().err


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_in_its_protocol(tmp_path: Path, abstract: bool) -> None:
    address = f"@marsmith-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "KEPT": "1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(5)
        manager = ServiceManager.from_environment(environment)
        assert environment == {"KEPT": "1"}
        manager.ready("two\nlines")
        manager.alive()
        manager.alive()
        manager.stopping()
        heard = [receiver.recv(4096).decode() for _ in range(3)]
    assert heard == ["READY=1\nSTATUS=two lines", "WATCHDOG=1", "STOPPING=1\nSTATUS=stopping"]


def test_without_a_service_manager_nothing_is_sent_and_a_deaf_one_does_no_harm(tmp_path: Path) -> None:
    ServiceManager.from_environment({}).ready("")
    ServiceManager(str(tmp_path / "nobody")).ready("")
    assert ServiceManager.from_environment({"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_the_orphans_of_a_first_process_are_reaped() -> None:
    # As the first process of a container is: what others leave behind becomes its child.
    program = """
import ctypes, os, subprocess, sys
from marsmith.server import processes as server_process
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
subprocess.run(["sh", "-c", "sleep 0.1 & echo $!"], check=True)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
server_process.reap_orphans()
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit("a child is left")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_run_state_of_another_version_of_marsmith_is_read(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    state = RunState(1, 2.0, "a", "b", "c", "d", "e", project.run, tokens=True, ca_file=tmp_path / "ca.pem", ready=True)
    run_state.write(project, state)
    assert run_state.read(project) == state
    path = project.run / run_state.FILE_NAME
    older = path.read_text().replace('"ready": true', '"later": 1').replace('"ca_file"', '"unknown"')
    path.write_text(older)
    assert run_state.read(project) == replace(state, ca_file=None, ready=False)


@pytest.mark.parametrize("name", [supervisor_state.FILE_NAME, run_state.FILE_NAME])
def test_what_a_later_marsmith_left_is_refused_and_stop_removes_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path / "p")
    project.run.mkdir(parents=True)
    newer = project.run / name
    newer.write_text('{"format": 99}')
    with pytest.raises(NewerStateError, match=f"{newer}: is of format 99, this marsmith knows 1"):
        lifecycle.start(project)
    assert newer.exists()
    monkeypatch.chdir(project.root)
    assert main(["status"]) == 1
    told = capsys.readouterr().err
    assert f"{name}: is of format 99" in told
    assert "TIP: a later marsmith wrote it: use that one (pip install --upgrade marsmith); or end the server" in told
    lifecycle.stop(project)
    assert not newer.exists()


def test_a_supervisor_that_died_is_none(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p")
    project.run.mkdir(parents=True)
    own = supervisor_state.of_this_process()
    supervisor_state.write(project, own)
    assert supervisor_state.read(project) == own
    supervisor_state.write(project, replace(own, created=own.created - 100))
    assert supervisor_state.read(project) is None
    (project.run / supervisor_state.FILE_NAME).write_text("[")
    assert supervisor_state.read(project) is None


def test_a_process_that_does_not_listen_is_ended_by_force() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    import psutil

    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        server_process.end_one(process.pid, psutil.Process(process.pid).create_time(), 0.2)
        assert process.wait(5) == -9


# What the kernel does to a process that is killed, in slow motion: its first thread goes before the others.
SLOW_END = """
import ctypes, platform, socket, sys, threading
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=sys.stdin.read).start()
print(server.getsockname()[1], flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60}.get(platform.machine(), 93), 0)
"""


def test_how_a_process_ended_is_told_although_threads_of_it_still_end() -> None:
    import psutil

    with subprocess.Popen([sys.executable, "-c", SLOW_END], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        server_process.remember_child(process)
        created = psutil.Process(process.pid).create_time()
        while server_process.frontend(process.pid, created) is not None:
            time.sleep(0.01)
        assert process.poll() is None
        threading.Timer(0.3, process.stdin.close).start()
        assert server_process.exit_of(process.pid) == 0
        server_process.reap()
        assert server_process.exit_of(process.pid) is None


def test_a_dead_process_is_waited_for_while_threads_of_it_hold_its_port() -> None:
    import psutil

    with subprocess.Popen([sys.executable, "-c", SLOW_END], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = ("127.0.0.1", int(process.stdout.readline()))
        created = psutil.Process(process.pid).create_time()
        while server_process.frontend(process.pid, created) is not None:
            time.sleep(0.01)
        socket.create_connection(address).close()
        threading.Timer(0.3, process.stdin.close).start()
        server_process.wait_for_threads(process.pid, created, 60)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
