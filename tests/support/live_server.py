"""A real TorchServe for tests: a project in a temporary folder, on free ports.

- The fixture ``shared_server`` is for tests that neither restart nor configure the server: it runs already.
- A file with a server of its own starts it once, in a module fixture with ``make_project`` and ``running``.

What a server costs is its workers: one with torch takes more processor time than TorchServe itself. They
start without torch, unless the file is marked with ``tensors``.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from marsmith.client import Client
from marsmith.config.properties import ENCODING, as_mapping, parse_properties, render_properties
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle
from marsmith.server.lifecycle import StartOptions
from support.projects import REPOSITORY

ECHO = """
def handle(data, context):
    return [bytes(row["body"]) for row in data or []]
"""


def until(done: Callable[[], bool], seconds: float = 240.0, *, pause_s: float = 0.02) -> None:
    """Wait until it is so; ``seconds`` decides only how long a broken build waits, ``pause_s`` what waiting costs."""
    late = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < late, "it did not come to pass"
        time.sleep(pause_s)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has asked for since it ended does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def free_ports(count: int) -> list[int]:
    """Return ports on 127.0.0.1 that nothing used a moment ago, all different."""
    ports: list[int] = []
    with ExitStack() as held:
        while len(ports) < count:
            port = random.choice(_own_ports())
            one = held.enter_context(socket.socket())
            with suppress(OSError):
                one.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


@cache
def _own_ports() -> range:
    """Return ports that no other test process chooses from while this one lives, nor the kernel.

    Processes of another run count too: a server takes seconds until it has the ports that were chosen for it.
    """
    for first in range(12_000, 32_000, 1_000):
        with suppress(OSError):
            lock = os.open(Path(tempfile.gettempdir()) / f"marsmith-test-ports-{first}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return range(first, first + 1_000)
    return range(12_000, 32_000)


def free_addresses() -> dict[str, str]:
    """Return the properties that put every API of a server on a free port."""
    ports = free_ports(5)
    rest = ("inference_address", "management_address", "metrics_address")
    grpc = ("grpc_inference_port", "grpc_management_port")
    return {
        **{key: f"http://127.0.0.1:{port}" for key, port in zip(rest, ports[:3], strict=True)},
        **{key: str(port) for key, port in zip(grpc, ports[3:], strict=True)},
    }


def make_project(root: Path, archives: Mapping[str, Path] | None = None, **properties: str) -> Project:
    """Make a project in ``root`` with this repository's server config, free ports and these archives in its store.

    Args:
        root: an empty or missing folder.
        archives: file name in the store -> archive to put there.
        properties: keys of the server config to set otherwise.
    """
    (root / "config" / "models").mkdir(parents=True)
    (root / "model_store").mkdir()
    for name in ("log4j2.xml", "metrics.yaml"):
        shutil.copy(REPOSITORY / "config" / name, root / "config")
    shutil.copy(REPOSITORY / "model_store" / "README.md", root / "model_store")
    for name, archive in (archives or {}).items():
        shutil.copy(archive, root / "model_store" / name)
    committed = (REPOSITORY / "config.properties").read_text(encoding=ENCODING)
    config = as_mapping(parse_properties(committed)) | free_addresses() | properties
    (root / "config.properties").write_text(render_properties(config), encoding="ascii")
    # Several servers run at once, and one port is the default of all listeners.
    (root / "config" / "marsmith.yaml").write_text("listener: none\n", encoding="ascii")
    return Project(root.resolve())


@contextmanager
def running(project: Project, *, timeout_s: float = 280.0) -> Iterator[RunState]:
    """Serve the project's store, and end the server by force at the end: a kind end takes two seconds."""
    state = lifecycle.start(project, StartOptions(timeout_s=timeout_s))
    try:
        yield state
    finally:
        lifecycle.stop(project, timeout_s=0)


@dataclass(frozen=True)
class SharedServer:
    """A server of several tests, each with models of its own; it serves ``echo`` besides.

    Attributes:
        project: its project. A test may put archives into the store, and takes them away again.
        state: its addresses and tokens.
    """

    project: Project
    state: RunState

    @contextmanager
    def serving(self, name: str, handler: str, *, workers: int = 1) -> Iterator[Path]:
        """Serve version 1.0 of a model with this handler, and unregister it at the end; yield its archive."""
        file = self.project.model_store / f"{name}-1.0.mar"
        archive = tiny_archive(file, name=name, handler=handler, workers=workers)
        with Client.for_project(self.project) as client:
            client.register(file.name, deadline_s=240)
            try:
                yield archive
            finally:
                client.unregister(name, "1.0")
                archive.unlink()


@contextmanager
def shared(folder: Path) -> Iterator[SharedServer]:
    """Start the server of the fixture ``shared_server``."""
    project = make_project(folder / "project", {"echo-1.0.mar": tiny_archive(folder / "echo.mar")})
    with running(project) as state:
        yield SharedServer(project, state)


def tiny_archive(
    path: Path,
    *,
    name: str = "echo",
    version: str = "1.0",
    handler: str = ECHO,
    workers: int = 1,
    members: Mapping[str, bytes | str] | None = None,
) -> Path:
    """Write an archive whose handler needs no model; by default it echoes the body of the request."""
    manifest = {
        "createdOn": "01/01/2024 00:00:00",
        "runtime": "python",
        "archiverVersion": "0.12.0",
        "model": {
            "modelName": name,
            "modelVersion": version,
            "handler": "tiny_handler.py",
            "configFile": "model-config.yaml",
        },
    }
    config = {
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1,
        "maxBatchDelay": 1,
        "responseTimeout": 20,
        "startupTimeout": 240,
        "maxRetryTimeoutInSec": 10,
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("tiny_handler.py", handler)
        for member, content in {"model-config.yaml": json.dumps(config), **(members or {})}.items():
            archive.writestr(member, content)
    return path
