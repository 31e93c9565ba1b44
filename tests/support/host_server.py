"""A host for tests, as a process of its own: started by the command, on free ports, with a state in a folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from marsmith import run_state
from marsmith.host import state as states
from marsmith.host.state import HostState
from marsmith.project import Project
from marsmith.run_state import RunState
from support.live_server import free_ports, running, tiny_archive, until

# Does what the body says. A file decides how long it waits, and another one says that it has begun.
LIGHT = """
import json, os, pathlib, time

KEPT = []


def do(order, context, index):
    if order.startswith("wait "):
        _, begun, until = order.split(" ")
        with open(begun, "a") as file:
            file.write(f"{os.getpid()}\\n")
        while not os.path.exists(until):
            time.sleep(0.01)
    if order.startswith("die once "):
        mark = pathlib.Path(order.removeprefix("die once "))
        if not mark.exists():
            mark.touch()
            os._exit(3)
    if order == "die":
        os._exit(3)
    if order == "hang":
        time.sleep(600)
    if order.startswith("grow "):
        KEPT.append(bytearray(os.urandom(1 << 20) * int(order.removeprefix("grow "))))
    if order == "refuse":
        context.set_response_status(422, "Unprocessable", index)
    return json.dumps({"order": order, "pid": os.getpid(), "batch": context.batch, "version": VERSION})


def handle(data, context):
    if data is None:
        return
    context.batch = len(data)
    orders = (body if isinstance(body, str) else bytes(body).decode() for body in (row["body"] for row in data))
    return [do(order, context, index) for index, order in enumerate(orders)]
"""


def light_archive(path: Path, version: str = "1.0", *, name: str = "light", **config: Any) -> Path:
    """Write an archive with ``LIGHT``: two workers, batches of up to 4."""
    settings: dict[str, Any] = {"minWorkers": 2, "maxWorkers": 2, "batchSize": 4, "jobQueueSize": 20}
    settings |= {"responseTimeout": 20, "startupTimeout": 60, "handler": {"idempotent": True}, **config}
    handler = f"VERSION = {version!r}\n{LIGHT}"
    members = {"model-config.yaml": json.dumps(settings)}
    return tiny_archive(path, name=name, version=version, handler=handler, members=members)


@dataclass
class RunningHost:
    """A host, and what it has printed so far."""

    process: subprocess.Popen[bytes]
    state: HostState
    folder: Path
    printed: Path

    def output(self) -> str:
        return self.printed.read_text()

    def workers(self) -> list[int]:
        """Process ids of its workers: its children that run a worker."""
        return [child.pid for child in psutil.Process(self.process.pid).children() if _is_worker(child)]

    def key(self) -> str:
        from marsmith.client.key_file import read_key_file

        assert self.state.key_file
        return read_key_file(self.state.key_file).inference.value


def _is_worker(child: psutil.Process) -> bool:
    """Whether it runs a worker; one that has just ended does not."""
    try:
        return "marsmith.host.worker" in child.cmdline()
    except psutil.NoSuchProcess:
        return False


def start_host(folder: Path, archives: Sequence[Path], *flags: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
    """Start the command; return its process, its state folder and the file with its output."""
    state, printed = folder / "state", folder / "printed.txt"
    folder.mkdir(parents=True, exist_ok=True)
    rest, grpc = free_ports(2)
    line = [sys.executable, "-m", "marsmith", "host", *map(str, archives), "--state", str(state), "--port", str(rest)]
    line += ["--grpc-port", str(grpc), *flags]
    with printed.open("wb") as output:
        return subprocess.Popen(line, stdout=output, stderr=output, cwd=folder), state, printed


@contextmanager
def running_host(folder: Path, archives: Sequence[Path], *flags: str) -> Iterator[RunningHost]:
    """Run a host until the end of the block, and see that nothing of it is left."""
    process, state, printed = start_host(folder, archives, *flags)
    try:
        until(lambda: (state / states.FILE_NAME).exists() or process.poll() is not None)
        assert process.poll() is None, printed.read_text()
        yield RunningHost(process, states.read(state), state, printed)
    finally:
        process.terminate()
        process.wait(60)


# Servers that the tests of inference run against.
SERVERS = ("TorchServe", "host")


def serving(server: str, project: Project) -> AbstractContextManager[RunState]:
    """Serve a project's store with TorchServe, or with a host."""
    return running(project) if server == "TorchServe" else host_for(project)


@contextmanager
def host_for(project: Project, *flags: str) -> Iterator[RunState]:
    """Serve a project's store with a host, known to the project as its server: for tests of both servers."""
    with running_host(project.root / "host", [], "--store", str(project.model_store), *flags) as host:
        state = as_run_state(host)
        run_state.write(project, state)
        try:
            yield state
        finally:
            run_state.remove(project)


def as_run_state(host: RunningHost) -> RunState:
    state = host.state
    url, grpc = state.url, state.grpc or ""
    tokens = state.key_file is not None
    return RunState(state.pid, state.created, url, url, url, grpc, grpc, host.folder, tokens, ready=True)
