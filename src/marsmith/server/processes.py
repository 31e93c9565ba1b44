"""The processes of one server: the Java frontend and its Python workers, found again and ended to the last one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from marsmith.server.launch import ADOPT_FLAG, RUN_VARIABLE, SUPERVISED_VARIABLE

# psutil computes it from the boot time, which a clock adjustment moves by a little.
_CREATION_TOLERANCE_S = 1.0
_GRACE_FOR_WORKERS_S = 2.0
_LOOK_S = 0.05
_THREADS_END_S = 10.0

# A child that ended stays a zombie until its parent asks for it, so a caller that lives on must keep what it started.
_children: dict[int, subprocess.Popen[bytes]] = {}


def frontend(pid: int, created: float) -> psutil.Process | None:
    """Return the process that was started as ``pid`` at ``created``; None where it has ended."""
    process = _started(pid, created)
    return process if process and _is_alive(process) else None


def processes_of(run_folder: Path) -> list[psutil.Process]:
    """Return all living processes of the server that runs in ``run_folder``, also those whose parent is gone."""
    marked = [process for process in psutil.process_iter() if _belongs(process, str(run_folder))]
    found = {process.pid: process for process in marked}
    for process in marked:
        # With blacklist_env_vars workers may not carry the variable.
        with suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True) if _is_alive(child)}
    found.pop(os.getpid(), None)
    return list(found.values())


def supervisors_of(run_folder: Path) -> list[psutil.Process]:
    """Return the living supervisors in the background of the server that runs in ``run_folder``."""
    carrying = [process for process in psutil.process_iter() if _belongs(process, str(run_folder), SUPERVISED_VARIABLE)]
    return [process for process in carrying if _is_called_with(process, ADOPT_FLAG)]


def end(run_folder: Path, timeout_s: float) -> list[int]:
    """End every process of the server, the frontend first, kindly and then by force; return the pids that were forced.

    The frontend gets ``timeout_s`` seconds to unregister its models, which ends the workers; 0: by force at once.
    """
    if timeout_s > 0:
        _terminate(_roots(processes_of(run_folder)), timeout_s)
        _terminate(processes_of(run_folder), _GRACE_FOR_WORKERS_S)
    forced: dict[int, psutil.Process] = {}
    while (remaining := processes_of(run_folder)) or any(map(_is_ending, forced.values())):
        for process in remaining:
            _send(process, kill=True)
            forced[process.pid] = process
        time.sleep(_LOOK_S)
    return list(forced)


def end_one(pid: int, created: float, timeout_s: float) -> None:
    """End the process that was started as ``pid`` at ``created``, kindly and after ``timeout_s`` seconds by force."""
    process = frontend(pid, created)
    if process is None:
        return
    _send(process, kill=False)
    # psutil would also wait for a zombie whose parent does not care.
    late = time.monotonic() + timeout_s
    while frontend(pid, created) is not None:
        if time.monotonic() > late:
            _send(process, kill=True)
        time.sleep(_LOOK_S)


def wait_for_threads(pid: int, created: float, timeout_s: float) -> None:
    """Wait until the process that was started as ``pid`` at ``created``, and is dead, has let go of its ports."""
    process, late = _started(pid, created), time.monotonic() + timeout_s
    while process and _is_ending(process) and time.monotonic() < late:
        time.sleep(_LOOK_S)


def remember_child(process: subprocess.Popen[bytes]) -> None:
    """Have ``reap`` ask for this child."""
    _children[process.pid] = process


def exit_of(pid: int) -> int | None:
    """Return the exit status of a child that was remembered, negative for a signal; None where it is not known.

    A killed process counts as dead while its threads still end, and has no exit status before: that is waited for.
    """
    process = _children.get(pid)
    try:
        return process.wait(_THREADS_END_S) if process else None
    except subprocess.TimeoutExpired:
        return None


def reap() -> None:
    """Ask for the children that have ended."""
    for pid, process in list(_children.items()):
        if process.poll() is not None:
            del _children[pid]


def reap_orphans() -> None:
    """Ask for ended processes whose parent has died: they become children of the first process of a container."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in _children:
                # Its exit status is of interest: whoever started it asks, and then the next one is seen.
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def _started(pid: int, created: float) -> psutil.Process | None:
    """Return the process that was started as ``pid`` at ``created``, also a zombie; None where its pid is another's."""
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - created) <= _CREATION_TOLERANCE_S else None
    except psutil.Error:
        return None


def _is_called_with(process: psutil.Process, argument: str) -> bool:
    """Whether a process has this argument itself: what it starts has its environment, and not its command line."""
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
    """Tell whether it is a zombie some of whose threads go on: as long as they do, it holds its ports."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() > 1
    except psutil.Error:
        return False


def _roots(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return those that no other of them has started."""
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
