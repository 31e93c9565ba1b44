"""Child processes and temporary folders that end with this process in any case, and its orderly end on signals.

On SIGTERM, SIGHUP or Ctrl-C the command unwinds as after any error, and each block cleans up. A killed process cannot
do that, so a guard process does: see ``child_guard``. Each child has the guard's mark in its environment, and its own
children inherit it. (The kernel's parent-death signal reaches only direct children, and is also sent when the thread
that started them ends.)
"""

from __future__ import annotations

import atexit
import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from marsmith import child_guard

# One mark for each ancestor process that must not be outlived.
MARKS_VARIABLE = "MARSMITH_PARENTS"
# Temporary folder of the parent, for a child with its own temporary folder.
USUAL_FOLDER_VARIABLE = "MARSMITH_USUAL_TMPDIR"
INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
GRACE_S = 10.0
_LOOK_S = 0.02
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_GUARD_ENDS_S = 10.0
# Long enough to leave the finalizer.
_SEND_AGAIN_S = 0.05
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequestedError(KeyboardInterrupt):
    """A signal asked this process to end. It is not a failure, and is handled like KeyboardInterrupt.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise StopRequestedError at the first SIGTERM, SIGINT or SIGHUP; for the main thread.

    Later signals have no effect, so that they cannot interrupt the clean-up. Ignored signals stay ignored, as with
    ``nohup``. Python drops exceptions in a finalizer, so a signal during one is sent again.
    """
    asked = False
    usual_hook = sys.unraisablehook

    def request(number: int, _frame: object) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise StopRequestedError(number)

    def drop(dropped: sys.UnraisableHookArgs) -> None:
        nonlocal asked
        if isinstance(dropped.exc_value, StopRequestedError):
            asked = False
            again = threading.Timer(_SEND_AGAIN_S, os.kill, (os.getpid(), dropped.exc_value.number))
            again.daemon = True
            again.start()
        else:
            usual_hook(dropped)

    before = {each: signal.signal(each, request) for each in _STOP_SIGNALS if signal.getsignal(each) != signal.SIG_IGN}
    sys.unraisablehook = drop
    try:
        yield
    finally:
        sys.unraisablehook = usual_hook
        if not asked:
            for each, handler in before.items():
                signal.signal(each, handler or signal.SIG_DFL)


def start(command: Sequence[Any], env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
    """Start a child that leads its own session and does not outlive this process.

    Args:
        command: program and arguments.
        env: its environment; None for this process's.
        options: further options of ``subprocess.Popen``.
    """
    marked_env = marked(os.environ if env is None else env)
    return subprocess.Popen(command, env=marked_env, start_new_session=True, **options)


def marked(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment whose processes do not outlive this one."""
    marks = f"{env.get(MARKS_VARIABLE, '')} {_the_guard().mark}".strip()
    return {**env, MARKS_VARIABLE: marks}


def start_detached(
    command: Sequence[Any], env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a process that outlives this one, but not this one's own ancestors; arguments as in ``start``."""
    base = os.environ if env is None else env
    kept = {name: value for name, value in base.items() if name != MARKS_VARIABLE}
    return subprocess.Popen(command, env=kept, start_new_session=True, **options)


def run(command: Sequence[Any], timeout_s: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Run a child to its end without stdin, and return its output.

    Raises:
        OSError: the child cannot be started.
        subprocess.TimeoutExpired: the child did not end in time, and was killed.
    """
    pipe = subprocess.PIPE
    with start(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:
            end(process, grace_s=0.0)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def begin_as_child(parent: int) -> None:
    """Give a fork the properties of a child of ``start``: its own session, and the end with its parent.

    Args:
        parent: process id of the parent. Its main thread must have created the fork.
    """
    os.setsid()
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end(process: subprocess.Popen[Any], grace_s: float = GRACE_S) -> int:
    """End a child and the first process group of its session; return its exit status, negative for a signal.

    Args:
        process: child from ``start``.
        grace_s: time to end in order, in seconds; after it the child is killed. 0: it is killed at once.
    """
    if process.returncode is None:
        if grace_s > 0:
            _signal_group(process.pid, signal.SIGTERM)
        late = time.monotonic() + grace_s
        # The child is not reaped yet, so that its id, which is also the group's, is not reused.
        while not has_ended(process.pid) and time.monotonic() < late:
            time.sleep(_LOOK_S)
        kill_group(process.pid)
    return process.wait()


def kill_group(leader: int) -> None:
    """Kill a process group, if it still has a process."""
    _signal_group(leader, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    """Return whether a child has ended, without reaping it."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextmanager
def temporary_folder(prefix: str, *, within: str | None = None) -> Iterator[Path]:
    """Yield an empty folder that is removed at the end.

    Args:
        prefix: prefix of its name.
        within: parent folder; None for the usual one.

    Raises:
        OSError: the folder cannot be created.
    """
    path = Path(within or tempfile.gettempdir()).resolve() / f"{prefix}{secrets.token_hex(8)}"
    with removed_at_end(path):
        path.mkdir(mode=0o700)
        yield path


@contextmanager
def removed_at_end(folder: Path) -> Iterator[None]:
    """Remove a folder, which may not exist yet, at the end of this block or of this process."""
    _the_guard().tell(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def inductor_folder(folder: Path) -> Iterator[None]:
    """Make PyTorch's compiler, in this process and its children, use ``folder`` for its files.

    An import of torch creates a folder for them, which would stay in the usual place.
    """
    before = os.environ.get(INDUCTOR_VARIABLE)
    os.environ[INDUCTOR_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(INDUCTOR_VARIABLE, None)
        else:
            os.environ[INDUCTOR_VARIABLE] = before


@contextmanager
def own_temporary_folder(env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield an environment for a child whose temporary files are all removed at the end."""
    usual = str(usual_temporary_folder())
    with temporary_folder("marsmith-tmp-") as folder:
        yield {**env, "TMPDIR": str(folder), USUAL_FOLDER_VARIABLE: usual}


def usual_temporary_folder() -> Path:
    """Return the usual folder for temporary files, even in a child with its own."""
    return Path(os.environ.get(USUAL_FOLDER_VARIABLE) or tempfile.gettempdir())


class _Guard:
    """The process that waits for this one to end."""

    def __init__(self) -> None:
        self.mark = secrets.token_hex(12)
        self._process = start_detached(
            [sys.executable, "-I", "-S", child_guard.__file__, self.mark],
            env={**os.environ, child_guard.GUARD_VARIABLE: "1"},
            cwd="/",
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def tell(self, folder: Path) -> None:
        """Register a folder for removal."""
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.write(os.fsencode(folder) + b"\0")

    def leave(self) -> None:
        """Close its stdin in a fork, whose end does not matter to the guard."""
        if self._process.stdin:
            self._process.stdin.close()

    def end(self) -> None:
        """End the guard's wait, so that it cleans up now."""
        self.leave()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GUARD_ENDS_S)


_guard: _Guard | None = None
_lock = threading.Lock()


def _the_guard() -> _Guard:
    global _guard
    with _lock:
        if _guard is None:
            _guard = _Guard()
            atexit.register(_end_guard)
        return _guard


def _end_guard() -> None:
    global _guard
    guard, _guard = _guard, None
    if guard is not None:
        guard.end()


def _after_fork() -> None:
    global _guard, _lock
    guard, _guard, _lock = _guard, None, threading.Lock()
    if guard is not None:
        guard.leave()


os.register_at_fork(after_in_child=_after_fork)


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)
