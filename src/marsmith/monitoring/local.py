"""Prometheus and Alertmanager as children of this process, for one project on this machine."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from marsmith import child_processes, files
from marsmith.errors import MonitoringError, UsageError
from marsmith.monitoring.folder import ALERTMANAGER_FILE, write_folder
from marsmith.monitoring.prometheus import RETENTION, RETENTION_SIZE
from marsmith.project import Project

LOOPBACK = "127.0.0.1"
# Debian calls it by another name.
_ALERTMANAGER = ("prometheus-alertmanager", "alertmanager")
_TIP = "apt-get install --no-install-recommends prometheus prometheus-alertmanager, or use the compose file of --write"
_START_S = 60.0
_LOOK_S = 0.05
_GRACE_S = 20.0


@dataclass(frozen=True)
class Programs:
    """Executables."""

    prometheus: str
    alertmanager: str


@dataclass(frozen=True)
class Ports:
    """Ports on the loopback."""

    prometheus: int
    alertmanager: int


@dataclass(frozen=True)
class Program:
    """A program that runs.

    Attributes:
        name: its name, for messages.
        url: its address.
        log: what it prints.
        process: the process.
    """

    name: str
    url: str
    log: Path
    process: subprocess.Popen[bytes]


def find_programs() -> Programs:
    """Return the executables.

    Raises:
        MonitoringError: one is not installed.
    """
    prometheus = shutil.which("prometheus")
    alertmanager = next(filter(None, map(shutil.which, _ALERTMANAGER)), None)
    missing = [name for name, path in (("Prometheus", prometheus), ("Alertmanager", alertmanager)) if path is None]
    if prometheus is None or alertmanager is None:
        verb = "is" if len(missing) == 1 else "are"
        raise MonitoringError(f"{' and '.join(missing)} {verb} not installed", tip=_TIP)
    return Programs(prometheus, alertmanager)


def choose_ports(prometheus: int, alertmanager: int) -> Ports:
    """Return the ports; 0 becomes a free one.

    Raises:
        UsageError: a port is in use.
    """
    with ExitStack() as held:
        return Ports(_bound(held, prometheus, "prometheus"), _bound(held, alertmanager, "alertmanager"))


def _bound(held: ExitStack, port: int, name: str) -> int:
    listening = held.enter_context(socket.socket())
    # As the programs do: what is left of the connections of the last run does not hold the port.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        listening.listen()
    except OSError as error:
        raise UsageError(
            f"port {port} for {name}: {error.strerror}", tip=f"name another one with --{name}-port; 0: a free one"
        ) from None
    return int(listening.getsockname()[1])


@contextmanager
def running(project: Project, texts: Mapping[str, str], programs: Programs, ports: Ports) -> Iterator[list[Program]]:
    """Write the configuration, start both programs, and end them at the end of the block.

    Args:
        project: its folder has the configuration, the data and the logs.
        texts: the files, as ``render_folder`` gives them.
        programs: the executables.
        ports: where they listen.

    Raises:
        UsageError: they run already for this project.
        MonitoringError: a program does not start.
    """
    folder = project.monitoring
    with _alone(folder), ExitStack() as stack:
        write_folder(folder, texts)
        started: list[Program] = []
        for name, command, port in _commands(folder, programs, ports):
            started.append(_start(folder, name, command, port))
            stack.callback(child_processes.end, started[-1].process, _GRACE_S)
        for program in started:
            _wait_until_ready(program)
        yield started


def watch(programs: Sequence[Program]) -> None:
    """Return never; a program that ends is an error.

    Raises:
        MonitoringError: a program has ended.
    """
    while True:
        for program in programs:
            _check_alive(program)
        time.sleep(_LOOK_S)


def _commands(folder: Path, programs: Programs, ports: Ports) -> Iterator[tuple[str, list[str], int]]:
    listen = f"--web.listen-address={LOOPBACK}:"
    alertmanager = [programs.alertmanager, f"--config.file={folder / ALERTMANAGER_FILE}"]
    alertmanager += [f"--storage.path={folder / 'data' / 'alertmanager'}", f"{listen}{ports.alertmanager}"]
    # No other Alertmanager is told.
    yield "alertmanager", [*alertmanager, "--cluster.listen-address=", "--log.level=warn"], ports.alertmanager
    prometheus = [programs.prometheus, f"--config.file={folder / 'prometheus.yml'}"]
    prometheus += [f"--storage.tsdb.path={folder / 'data' / 'prometheus'}", f"{listen}{ports.prometheus}"]
    prometheus += [f"--storage.tsdb.retention.time={RETENTION}", f"--storage.tsdb.retention.size={RETENTION_SIZE}"]
    yield "prometheus", [*prometheus, "--log.level=warn"], ports.prometheus


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with files.lock(folder / "lock", wait_s=0):
            yield
    except files.LockedError as error:
        holder = f" (process {error.holder})" if error.holder else ""
        raise UsageError(f"marsmith monitor --up runs already for this project{holder}") from None
    except OSError as error:
        raise MonitoringError(f"cannot write {folder}: {error.strerror}") from None


def _start(folder: Path, name: str, command: list[str], port: int) -> Program:
    log = folder / f"{name}.log"
    (folder / "data").mkdir(exist_ok=True)
    with log.open("wb") as output:
        try:
            process = child_processes.start(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise MonitoringError(f"{command[0]} does not run: {error.strerror}", tip=_TIP) from None
    return Program(name, f"http://{LOOPBACK}:{port}", log, process)


def _wait_until_ready(program: Program) -> None:
    late = time.monotonic() + _START_S
    while time.monotonic() < late:
        _check_alive(program)
        # Not ready is an error of HTTP, which is one of the system too.
        with suppress(OSError), urllib.request.urlopen(f"{program.url}/-/ready", timeout=5):  # noqa: S310 - our own
            return
        time.sleep(_LOOK_S)
    raise MonitoringError(f"{program.name} is not ready in {_START_S:g} s", tip=f"its log is {program.log}")


def _check_alive(program: Program) -> None:
    if program.process.poll() is None:
        return
    lines = program.log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if "err=" in line or "error" in line), *lines[-1:] or [""])
    raise MonitoringError(
        f"{program.name} ended with {program.process.returncode}: {last.strip()}", tip=f"its log is {program.log}"
    )
