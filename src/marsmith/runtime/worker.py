"""One Python worker of TorchServe as a child process, started and called as the frontend does.

A single thread does everything. Whenever it waits, it also reads the worker's output. All lines that belong to a
response are therefore read before the response, and neither side can block the other.
"""

from __future__ import annotations

import importlib.util
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Protocol

from marsmith import child_processes
from marsmith.errors import MissingDependencyError
from marsmith.runtime.worker_protocol import STARTED_LINE

_CHUNK = 1 << 18
# The kernel's limit for the path of a unix socket is 108 bytes.
_MAX_SOCKET_PATH = 100
# The frontend's time limit for the start of a worker process, in seconds.
_START_TIMEOUT_S = 120.0
# Time for which our handlers buffer metric lines, in seconds (marsmith_handler/gathered_lines.py).
METRIC_LINES = "MARSMITH_METRIC_LINES_S"


class WorkerEndedError(Exception):
    """The worker process ended, or closed its socket."""


def torchserve_folder() -> Path:
    """Return the folder of the installed ``ts`` package, without importing it.

    Raises:
        MissingDependencyError: TorchServe is not installed.
    """
    spec = importlib.util.find_spec("ts")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / "model_service_worker.py").is_file():
        raise MissingDependencyError("torchserve", extra="serve")
    return folder


def worker_environment(model_dir: Path, handler: str, base: Mapping[str, str]) -> dict[str, str]:
    """Return a worker's environment variables, as the frontend derives them from its own.

    Three are added. Bytecode is not cached, because the folder may be an archive whose members are all listed. Output
    is not buffered, so that the handler's lines stay in order. Metric lines are sent with their batch.
    """
    module, colon, _ = handler.partition(":")
    parts = [module.rpartition("/")[0] or module] if colon else []
    parts += [base["PYTHONPATH"]] if "PYTHONPATH" in base else []
    # TorchServe adds the empty last part, which is the working folder.
    python_path = os.pathsep.join([*parts, str(model_dir), ""])
    own = {"TS_DECODE_INPUT_REQUEST": "true", "TS_IPEX_ENABLE": "false", "TS_IPEX_GPU_ENABLE": "false"}
    return {
        **base,
        **own,
        "PYTHONPATH": python_path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        METRIC_LINES: "0",
    }


class Process(Protocol):
    """A child process that leads its own process group, and whose output can be read."""

    @property
    def pid(self) -> int:
        """Process id."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """Its output, with errors."""

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None before ``wait``."""

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        ...


# Starts a worker: command line, working folder, environment variables.
Launch = Callable[[Sequence[str], Path, Mapping[str, str]], Process]


def start_python(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker as a new Python process, as the frontend does."""
    return child_processes.start(
        command,
        environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


class WorkerProcess:
    """A running worker, as a byte stream of its responses.

    Args:
        model_dir: absolute path of the folder with the archive's members; the worker's working folder.
        handler: the manifest's handler.
        on_line: called with each line that the worker prints.
        metrics_config: file that declares the metrics; None for TorchServe's own.
        launch: starts the process; None for a new Python.

    Raises:
        MissingDependencyError: TorchServe is not installed.
        WorkerEndedError: the worker ended before it accepted a connection.
        TimeoutError: the worker did not start in time.
    """

    def __init__(
        self,
        model_dir: Path,
        handler: str,
        on_line: Callable[[str], None],
        *,
        metrics_config: Path | None = None,
        launch: Launch | None = None,
    ) -> None:
        self._on_line = on_line
        self._started = False
        self._partial = b""
        self._received = bytearray()
        self._deadline = time.monotonic() + _START_TIMEOUT_S
        self._selector = selectors.DefaultSelector()
        self._socket: socket.socket | None = None
        self._folders = ExitStack()
        try:
            self._process = self._start(model_dir, handler, metrics_config, launch or start_python)
        except BaseException:
            self._folders.close()
            raise
        try:
            self._connect()
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def send(self, message: bytes, timeout_s: float) -> None:
        """Send one message. Its responses must be read within ``timeout_s`` seconds.

        Raises:
            WorkerEndedError: the worker has ended.
            TimeoutError: the worker does not read the message.
        """
        self.allow(timeout_s)
        rest = memoryview(message)
        self._watch_socket(selectors.EVENT_READ | selectors.EVENT_WRITE)
        while rest:
            if self._wait() & selectors.EVENT_WRITE:
                rest = rest[self._write(rest) :]
        self._watch_socket(selectors.EVENT_READ)

    def allow(self, timeout_s: float) -> None:
        """Limit all further sending and reading to ``timeout_s`` seconds from now."""
        self._deadline = time.monotonic() + timeout_s

    def read(self, size: int, /) -> bytes:
        """Return the next ``size`` bytes of the worker's responses.

        Raises:
            WorkerEndedError: the worker has ended.
            TimeoutError: the bytes did not arrive in time.
        """
        while len(self._received) < size:
            self._wait()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def drain(self) -> None:
        """Read the lines that the worker has printed so far."""
        while self._take_output():
            pass

    def end(self) -> int | None:
        """End the process and its children; may be called twice.

        Returns:
            The exit status, negative for a signal; None if the process still ran and was killed here.
        """
        ended = self._has_ended()
        if self._process.returncode is None:
            child_processes.kill_group(self._process.pid)
        status = self._process.wait()
        self._close()
        return status if ended else None

    def _has_ended(self) -> bool:
        """Check without reaping, so that the ids of the process and its group are not reused."""
        return self._process.returncode is not None or child_processes.has_ended(self._process.pid)

    def _start(self, model_dir: Path, handler: str, metrics_config: Path | None, launch: Launch) -> Process:
        ts = torchserve_folder()
        folder = child_processes.temporary_folder("marsmith-worker-", within=_short_temporary_folder())
        self._socket_path = f"{self._folders.enter_context(folder)}/ts.sock.9000"
        # The worker's temporary folder is deleted with the worker, as in a server.
        base = self._folders.enter_context(child_processes.own_temporary_folder(os.environ))
        command = [sys.executable, str(ts / "model_service_worker.py"), "--sock-type", "unix"]
        command += ["--sock-name", self._socket_path]
        command += ["--metrics-config", str(metrics_config or ts / "configs" / "metrics.yaml")]
        process = launch(command, model_dir, worker_environment(model_dir, handler, base))
        assert process.stdout is not None  # noqa: S101 - a launch's part of the bargain
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout.fileno(), selectors.EVENT_READ)
        return process

    def _connect(self) -> None:
        while not self._started:
            self._wait()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(self._socket_path)
        self._socket.setblocking(False)
        self._selector.register(self._socket, selectors.EVENT_READ)

    def _watch_socket(self, events: int) -> None:
        if self._socket is None:
            raise WorkerEndedError
        self._selector.modify(self._socket, events)

    def _wait(self) -> int:
        """Wait for an event and handle it; return the events of the socket."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        socket_events = 0
        for key, events in self._selector.select(remaining):
            if key.fileobj is self._socket:
                socket_events = events
            else:
                self._take_output()
        if socket_events & selectors.EVENT_READ:
            self._take_response()
        return socket_events

    def _write(self, data: memoryview) -> int:
        assert self._socket is not None  # noqa: S101 - watched, so it is there
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.drain()
            raise WorkerEndedError from None

    def _take_response(self) -> None:
        assert self._socket is not None  # noqa: S101 - watched, so it is there
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._read_until_exit()
            raise WorkerEndedError
        self._received += data

    def _read_until_exit(self) -> None:
        """Read the output until the process has ended: it closes its socket first, and then prints why it ends."""
        deadline = min(self._deadline, time.monotonic() + 5)
        while not self._has_ended() and time.monotonic() < deadline:
            self.drain()
            time.sleep(0.01)
        self.drain()

    def _take_output(self) -> bool:
        """Read some of the worker's output; return whether there was any."""
        if self._process.stdout is None or self._process.stdout.closed:
            return False
        try:
            data = os.read(self._process.stdout.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(self._process.stdout.fileno())
            self._process.stdout.close()
            if self._socket is None:
                raise WorkerEndedError
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._take_line(line.decode("utf-8", "replace").rstrip("\r"))
        return True

    def _take_line(self, line: str) -> None:
        self._started = self._started or line.endswith(STARTED_LINE)
        self._on_line(line)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.stdout.close()
        self._selector.close()
        self._folders.close()


def _short_temporary_folder() -> str | None:
    """Return a folder for the socket if the usual one has too long a path; else None."""
    return "/tmp" if len(tempfile.gettempdir()) + 48 > _MAX_SOCKET_PATH else None  # noqa: S108 - private folder in it
