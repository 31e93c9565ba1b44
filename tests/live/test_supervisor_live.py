"""A server that is killed, and comes back as it was."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from marsmith import run_state
from marsmith.client import Client
from marsmith.errors import ClientError, MarsmithError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.server import lifecycle, supervisor_state
from marsmith.server import state as server_state
from marsmith.server.processes import processes_of
from marsmith.state import served_file
from support.command import marsmith as command
from support.live_server import is_alive, make_project, tiny_archive, until

Served = dict[str, tuple[bool, int, int]]


def kill(*pids: int) -> None:
    """Kill processes; one below 2 would mean a group, or everything."""
    assert all(pid > 1 for pid in pids), pids
    for pid in pids:
        # One may have ended by itself, as workers do without a frontend.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids))


def served(project: Project) -> Served:
    """Return what the server serves: by version whether it is the default, workers that are ready, least workers."""
    with Client.for_project(project) as client:
        found = server_state.registered_versions(client)
    return {
        f"{status.model_name}:{status.model_version}": (status.default, status.ready_workers, status.min_workers)
        for status in found
    }


def answers(project: Project, expected: Served) -> Callable[[], bool]:
    def look() -> bool:
        try:
            with Client.for_project(project) as client:
                echoed = client.predict("echo", b"hello", content_type="application/octet-stream").body
            return echoed == b"hello" and served(project) == expected
        except (ClientError, MarsmithError):
            return False

    return look


def unregistered(project: Project) -> set[str]:
    state = served_file.load(project).state
    return {name for name, _ in state.unregistered} if state else set()


def left_over(project: Project) -> list[int]:
    """Return every process that knows the run folder, from its command line or its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(project.run) in text for text in told) and is_alive(process.pid):
            found.append(process.pid)
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project with two versions of an echo, of which the first has two workers by its model config."""
    folder = tmp_path_factory.mktemp("supervised")
    archives = {
        "echo-1.0.mar": tiny_archive(folder / "one.mar", workers=2),
        "echo-2.0.mar": tiny_archive(folder / "two.mar", version="2.0"),
    }
    project = make_project(folder / "p", archives)
    yield project
    lifecycle.stop(project)
    assert left_over(project) == []


def test_after_a_kill_of_everything_versions_default_and_workers_come_back(project: Project, tmp_path: Path) -> None:
    first = command(project, "serve")
    assert first.returncode == 0, first.stderr
    assert served(project) == {"echo:1.0": (False, 2, 2), "echo:2.0": (True, 1, 1)}
    tiny_archive(project.model_store / "late-1.0.mar", name="late")
    tiny_archive(project.model_store / "gone-1.0.mar", name="gone")
    with Client.for_project(project) as client:
        client.register("late-1.0.mar")
        client.register("gone-1.0.mar")
        client.set_default("echo", "1.0")
        client.scale("echo", version="1.0", min_workers=1)
        client.scale("echo", version="2.0", min_workers=2)
        assert server_state.record(project)
        client.unregister("gone")
    # Nobody says so this time: the supervisor sees it by itself.
    until(lambda: "gone" in unregistered(project))

    supervisor = supervisor_state.read(project)
    assert supervisor is not None
    kill(supervisor.pid, *(process.pid for process in processes_of(project.run)))
    tiny_archive(project.model_store / "echo-3.0.mar", version="3.0")

    again = command(project, "serve")
    assert again.returncode == 0, again.stderr
    assert served(project) == {
        "echo:1.0": (True, 1, 1),
        "echo:2.0": (False, 2, 2),
        "echo:3.0": (False, 1, 1),
        "late:1.0": (True, 1, 1),
    }
    assert "echo:3.0 is new in the store; the default stays 1.0" in again.stderr
    assert "gone:1.0 was unregistered before the restart: marsmith register gone-1.0.mar" in again.stderr


def test_the_status_counts_the_requests_that_were_sent(project: Project) -> None:
    with Client.for_project(project) as client:
        for version, count in ((None, 3), ("2.0", 2)):
            for _ in range(count):
                client.predict("echo", b"x", version=version, content_type="application/octet-stream")
    shown = json.loads(command(project, "status", "--json").stdout)
    requests = {
        item["version"]: item["traffic"]["requests_total"] for item in shown["versions"] if item["model"] == "echo"
    }
    assert requests == {"1.0": 3, "2.0": 2, "3.0": 0}
    of_two = next(item for item in shown["versions"] if item["version"] == "2.0")
    assert 0 < of_two["traffic"]["queue_ms"] < of_two["traffic"]["latency_ms"]
    assert (of_two["min_workers"], of_two["ready_workers"], of_two["worker_restarts"]) == (2, 2, 0)
    assert (of_two["queue_pending"], of_two["queue_remaining"]) == (0, 100)
    assert all(worker["memory_bytes"] > 1e6 for worker in of_two["workers"])
    assert shown["memory_bytes"] > 1e6
    assert shown["supervisor"]["restarts"] == 0


def test_the_status_can_be_watched_without_a_terminal_and_ends_cleanly(project: Project) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "marsmith", "status", "--watch", "--json", "--interval", "0.5"],
        env=os.environ | {PROJECT_VARIABLE: str(project.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        first = json.loads(watch.stdout.readline())
        with Client.for_project(project) as client:
            for _ in range(5):
                client.predict("late", b"x", content_type="application/octet-stream")
        rates = [traffic_of_late(first)]
        while rates[-1]["requests_total"] < 5:
            rates.append(traffic_of_late(json.loads(watch.stdout.readline())))
        watch.send_signal(signal.SIGINT)
        assert watch.wait(60) == 0
        assert watch.stderr.read() == ""
    assert rates[0]["requests_per_second"] is None
    assert any(rate["requests_per_second"] > 0 for rate in rates[1:])
    assert rates[-1]["requests_total"] == 5


def traffic_of_late(look: dict[str, Any]) -> dict[str, Any]:
    return dict(next(item for item in look["versions"] if item["model"] == "late")["traffic"])


def test_in_the_background_java_that_is_killed_comes_back_and_stop_ends_the_supervisor_too(project: Project) -> None:
    before = served(project)
    supervisor = supervisor_state.read(project)
    assert supervisor is not None
    kill(run_state.read(project).pid)
    until(answers(project, before))
    until(lambda: (supervisor_state.read(project) or supervisor).restarts == 1)
    assert command(project, "stop").returncode == 0
    assert not is_alive(supervisor.pid)
    assert left_over(project) == []
    assert not (project.run / supervisor_state.FILE_NAME).exists()


def test_in_the_foreground_systemd_hears_and_the_log_is_json(project: Project, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name in ("gone-1.0.mar", "late-1.0.mar", "echo-3.0.mar"):
        (project.model_store / name).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, log.open("w") as stderr:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(240)
        process = subprocess.Popen(
            [sys.executable, "-m", "marsmith", "serve", "--foreground", "--log", "json", "--fresh"],
            env=os.environ | {PROJECT_VARIABLE: str(project.root), "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=stderr,
        )

        def hear(sign: str) -> None:
            while sign not in manager.recv(4096).decode().splitlines():
                assert process.poll() is None

        try:
            hear("READY=1")
            assert served(project) == {"echo:1.0": (False, 2, 2), "echo:2.0": (True, 1, 1)}
            with Client.for_project(project) as client:
                client.set_default("echo", "1.0")
            assert server_state.record(project)
            before = served(project)
            kill(run_state.read(project).pid)
            hear("READY=1")
            assert answers(project, before)()
            process.terminate()
            hear("STOPPING=1")
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
    assert left_over(project) == []
    records = [json.loads(line) for line in log.read_text().splitlines()]
    messages = [record["message"] for record in records if record["source"] == "marsmith"]
    assert any("TorchServe ended by itself, killed by SIGKILL; restart in 0.5 s" in text for text in messages)
    assert messages[-1] == "stopped"
    assert {"frontend", "marsmith"} < {record["source"] for record in records}
    assert any(record["source"].startswith("W-") and record["logger"] == "MODEL_LOG" for record in records)
