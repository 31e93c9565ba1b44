"""Processes of one server: find the Java frontend and its Python workers, and end all of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from marsmith.server.launch import ADOPT_FLAG, RUN_VARIABLE, SUPERVISED_VARIABLE

# Tolerance of creation times: psutil computes them from the boot time, which a clock adjustment changes slightly.
_CREATION_TOLERANCE_S = 1.0
_GRACE_FOR_WORKERS_S = 2.0
_LOOK_S = 0.05
_THREADS_END_S = 10.0

# A child that ended stays a zombie until its parent reaps it, so a caller that continues must keep its children.
_children: dict[int, subprocess.Popen[bytes]] = {}


def frontend(pid: int, created: float) -> psutil.Process | None:
    """Return the process that was started as ``pid`` at ``created``; None if it has ended."""
    process = _started(pid, created)
    return process if process and _is_alive(process) else None


def processes_of(run_folder: Path, variable: str = RUN_VARIABLE) -> list[psutil.Process]:
    """Return all living processes of the server that runs in ``run_folder``, even those without a parent.

    Args:
        run_folder: run folder of the project.
        variable: environment variable with the run folder, by which they are found.
    """
    marked = [process for process in psutil.process_iter() if _belongs(process, str(run_folder), variable)]
    found = {process.pid: process for process in marked}
    for process in marked:
        # With blacklist_env_vars workers may not have the variable.
        with suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True) if _is_alive(child)}
    found.pop(os.getpid(), None)
    return list(found.values())


def supervisors_of(run_folder: Path) -> list[psutil.Process]:
    """Return the living supervisors in the background of the server that runs in ``run_folder``."""
    carrying = [process for process in psutil.process_iter() if _belongs(process, str(run_folder), SUPERVISED_VARIABLE)]
    return [process for process in carrying if _is_called_with(process, ADOPT_FLAG)]


def end(run_folder: Path, timeout_s: float, variable: str = RUN_VARIABLE) -> list[int]:
    """End every process of the server, the frontend first, with SIGTERM and then SIGKILL. Return the killed pids.

    The frontend gets ``timeout_s`` seconds to unregister its models, which ends the workers. 0: SIGKILL at once.
    ``variable`` as in ``processes_of``.
    """
    if timeout_s > 0:
        _terminate(_roots(processes_of(run_folder, variable)), timeout_s)
        _terminate(processes_of(run_folder, variable), _GRACE_FOR_WORKERS_S)
    forced: dict[int, psutil.Process] = {}
    while (remaining := processes_of(run_folder, variable)) or any(map(_is_ending, forced.values())):
        for process in remaining:
            _send(process, kill=True)
            forced[process.pid] = process
        time.sleep(_LOOK_S)
    return list(forced)


def end_one(pid: int, created: float, timeout_s: float) -> None:
    """End the process that was started as ``pid`` at ``created``: SIGTERM, and SIGKILL after ``timeout_s`` seconds."""
    process = frontend(pid, created)
    if process is None:
        return
    _send(process, kill=False)
    # psutil would also wait for a zombie that its parent does not reap.
    late = time.monotonic() + timeout_s
    while frontend(pid, created) is not None:
        if time.monotonic() > late:
            _send(process, kill=True)
        time.sleep(_LOOK_S)


def wait_for_threads(pid: int, created: float, timeout_s: float) -> None:
    """Wait until a dead process, started as ``pid`` at ``created``, has released its ports."""
    process, late = _started(pid, created), time.monotonic() + timeout_s
    while process and _is_ending(process) and time.monotonic() < late:
        time.sleep(_LOOK_S)


def remember_child(process: subprocess.Popen[bytes]) -> None:
    """Register a child for ``reap``."""
    _children[process.pid] = process


def exit_of(pid: int) -> int | None:
    """Return the exit status of a registered child, negative for a signal; None if it is unknown.

    A killed process counts as dead while its threads still end, and has no exit status until then, so this waits for
    it.
    """
    process = _children.get(pid)
    try:
        return process.wait(_THREADS_END_S) if process else None
    except subprocess.TimeoutExpired:
        return None


def reap() -> None:
    """Reap the children that have ended."""
    for pid, process in list(_children.items()):
        if process.poll() is not None:
            del _children[pid]


def reap_orphans() -> None:
    """Reap ended processes whose parent has died: they become children of the first process of a container."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in _children:
                # Its exit status is needed by its owner, so leave it and look at the next one.
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def _started(pid: int, created: float) -> psutil.Process | None:
    """Return the process that was started as ``pid`` at ``created``, even as a zombie; None if the pid was reused."""
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - created) <= _CREATION_TOLERANCE_S else None
    except psutil.Error:
        return None


def _is_called_with(process: psutil.Process, argument: str) -> bool:
    """Return whether the argument is in the process's own command line; its children inherit only the environment."""
    try:
        return argument in process.cmdline()
    except psutil.Error:
        return False


def _belongs(process: psutil.Process, run_folder: str, variable: str = RUN_VARIABLE) -> bool:
    try:
        return process.environ().get(variable) == run_folder and _is_alive(process)
    except (psutil.Error, OSError):
        return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_ending(process: psutil.Process) -> bool:
    """Return whether it is a zombie with running threads, which still hold its ports."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() > 1
    except psutil.Error:
        return False


def _roots(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that no other of them has started."""
    found = list(processes)
    pids = {process.pid for process in found}
    return [process for process in found if _parent_pid(process) not in pids]


def _parent_pid(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _terminate(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    asked = list(processes)
    for process in asked:
        _send(process, kill=False)
    psutil.wait_procs(asked, timeout=timeout_s)


def _send(process: psutil.Process, *, kill: bool) -> None:
    with suppress(psutil.Error):
        process.kill() if kill else process.terminate()
