"""`marsmith monitor --up`: both programs run while it does, end with it, and leave their data."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from marsmith.cli import main
from marsmith.errors import UsageError
from marsmith.monitoring.local import LOOPBACK, choose_ports
from marsmith.project import PROJECT_VARIABLE, Project
from support.debian import needs
from support.live_server import until
from support.long_tests import mostly_long

COMMAND = [sys.executable, "-m", "marsmith", "monitor", "--up", "--prometheus-port", "0", "--alertmanager-port", "0"]
STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
installed = needs("prometheus", "prometheus-alertmanager")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project without models, whose server does not run."""
    root = tmp_path / "project"
    (root / "config" / "models").mkdir(parents=True)
    (root / "config.properties").write_text("metrics_mode=prometheus\n")
    monkeypatch.setenv(PROJECT_VARIABLE, str(root))
    return Project(root)


@contextmanager
def up(project: Project) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run the command, and yield it with what it prints when both are ready."""
    process = subprocess.Popen(
        [*COMMAND, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout
        lines: list[str] = []
        while not lines or lines[-1] not in {"}\n", ""}:
            lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
        yield process, json.loads("".join(lines))
    finally:
        process.kill()
        process.communicate()


def children(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    return {each.name(): each for each in psutil.Process(process.pid).children() if "python" not in each.name()}


@installed
@pytest.mark.parametrize("number", mostly_long("monitor", STOPS, [signal.SIGTERM]))
def test_both_run_and_end_with_the_command(empty: Project, number: signal.Signals) -> None:
    with up(empty) as (process, told):
        assert told["folder"] == str(empty.monitoring)
        rules = requests.get(f"{told['prometheus']}/api/v1/rules", {"type": "alert"}, timeout=20).json()
        assert any(group["name"] == "marsmith alerts" for group in rules["data"]["groups"])
        until(lambda: _alertmanagers(told) == [f"{told['alertmanager']}/api/v2/alerts"])
        found = children(process)
        assert len(found) == 2
        assert all(address.laddr.ip == "127.0.0.1" for each in found.values() for address in _listening(each))
        os.kill(process.pid, number)
        assert process.wait(60) == 128 + number
        assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in found.values())
    assert list((empty.monitoring / "data" / "prometheus").iterdir())


def _alertmanagers(told: dict[str, Any]) -> list[str]:
    reply = requests.get(f"{told['prometheus']}/api/v1/alertmanagers", timeout=20).json()
    return [each["url"] for each in reply["data"]["activeAlertmanagers"]]


def _listening(process: psutil.Process) -> list[Any]:
    return [each for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]


@installed
def test_a_program_that_dies_ends_the_other_and_is_named(empty: Project) -> None:
    with up(empty) as (process, _):
        found = children(process)
        found.pop("prometheus").kill()
        assert process.wait(60) == 1
        assert process.stderr
        assert "prometheus ended with -9" in process.stderr.read()
        assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in found.values())


@installed
def test_a_second_one_for_the_same_project_is_refused(empty: Project) -> None:
    with up(empty) as (process, told):
        second = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"runs already for this project (process {process.pid})" in second.stderr
        assert requests.get(f"{told['prometheus']}/-/ready", timeout=20).status_code == 200


@installed
def test_a_configuration_that_is_refused_is_one_line_with_the_log(
    empty: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    empty.monitoring.mkdir(parents=True)
    (empty.monitoring / "alertmanager.yml").write_text("route: {receiver: nobody-has-it}\n")
    assert main(["monitor", "--up", "--prometheus-port", "0", "--alertmanager-port", "0"]) == 1
    told = capsys.readouterr().err
    assert "alertmanager ended with 1" in told
    assert "nobody-has-it" in told
    assert f"TIP: its log is {empty.monitoring / 'alertmanager.log'}" in told


@installed
def test_a_port_in_use_is_named(empty: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["monitor", "--up", "--prometheus-port", str(port), "--alertmanager-port", "0"]) == 2
    told = capsys.readouterr().err
    assert f"port {port} for prometheus: Address already in use" in told
    assert "TIP: name another one with --prometheus-port" in told
    assert not empty.monitoring.exists()


def test_a_port_whose_last_connections_have_just_ended_is_free() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection((LOOPBACK, port)) as client:
            # Who ends a connection first keeps its port for a minute.
            server.accept()[0].close()
            assert client.recv(1) == b""
    ports = choose_ports(port, 0)
    assert ports.prometheus == port
    with pytest.raises(UsageError, match=f"port {port} for alertmanager: Address already in use"):
        choose_ports(port, port)


def test_programs_that_are_not_installed_are_named(
    empty: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(empty.root))
    assert main(["monitor", "--up"]) == 1
    told = capsys.readouterr().err
    assert "Prometheus and Alertmanager are not installed" in told
    assert "TIP: apt-get install --no-install-recommends prometheus prometheus-alertmanager" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --write --up is required"),
        (["--up", "--write", "d"], "not allowed with argument"),
        (["--write", "d", "--prometheus-port", "1"], "go with --up"),
    ],
)
def test_wrong_usage_is_refused(
    empty: Project, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        code = main(["monitor", *arguments])
    except SystemExit as error:
        code = int(error.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


@installed
def test_a_port_that_is_none_is_refused(empty: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "--up", "--alertmanager-port", "70000"]) == 2
    assert "--alertmanager-port must be from 0 to 65535, not 70000" in capsys.readouterr().err
