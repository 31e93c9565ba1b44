"""Children and temporary folders end with the process that began them, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from marsmith import child_processes
from support.live_server import is_alive, until

# Starts a child that starts one itself, in sessions of their own, makes a folder, says who they are, and waits.
PARENT = """
import sys
from marsmith import child_processes

GRANDCHILD = "import time; print('up', flush=True); time.sleep(1000)"
CHILD = f'''
import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}], stdout=subprocess.PIPE, start_new_session=True)
grandchild.stdout.readline()
print(grandchild.pid, flush=True)
time.sleep(1000)
'''
with child_processes.temporary_folder("marsmith-test-") as folder:
    (folder / "file").touch()
    child = child_processes.start([sys.executable, "-c", CHILD], stdout=-1, text=True)
    print(child.pid, child.stdout.readline().strip(), folder, flush=True)
    WAIT
"""


@contextmanager
def parent(wait: str = "sys.stdin.read()") -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """Give a process, the ids of its child and grandchild, and its folder."""
    command = [sys.executable, "-c", PARENT.replace("WAIT", wait)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        child, grandchild, folder = process.stdout.readline().split()
        try:
            yield process, [int(child), int(grandchild)], Path(folder)
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_children_and_folders_end_with_a_parent_that_is_killed(number: signal.Signals) -> None:
    with parent() as (process, pids, folder):
        assert all(map(is_alive, pids))
        assert folder.is_dir()
        process.send_signal(number)
        process.wait()
        until(lambda: not any(map(is_alive, pids)) and not folder.exists(), 30)


def test_they_are_gone_when_a_parent_that_ends_by_itself_has_ended() -> None:
    with parent(wait="raise SystemExit(3)") as (process, pids, folder):
        assert process.wait() == 3
        assert not any(map(is_alive, pids))
        assert not folder.exists()


def test_a_detached_process_stays() -> None:
    wait = "print(child_processes.start_detached(['sleep', '1000'], stdout=-3).pid, flush=True); sys.stdin.read()"
    with parent(wait=wait) as (process, pids, _):
        stays = int(process.stdout.readline()) if process.stdout else 0
        process.kill()
        process.wait()
        until(lambda: not any(map(is_alive, pids)), 30)
        assert is_alive(stays)
        os.kill(stays, signal.SIGKILL)


def test_what_a_marked_process_starts_in_between_ends_too() -> None:
    """A child uses children of its own: killed, its own guard clears away what it began, and no guard kills a guard."""
    wait = """
    inner = child_processes.start([sys.executable, "-c", '''
import sys
from marsmith import child_processes
with child_processes.temporary_folder("marsmith-test-") as folder:
    print(child_processes.start(["sleep", "1000"], stdout=-3).pid, folder, flush=True)
    sys.stdin.read()
'''], stdin=-1, stdout=-1, text=True)
    print(inner.stdout.readline(), end="", flush=True)
    sys.stdin.read()"""
    with parent(wait=wait) as (process, _, folder):
        assert process.stdout
        sleeper, inner_folder = process.stdout.readline().split()
        process.kill()
        process.wait()
        until(lambda: not is_alive(int(sleeper)) and not Path(inner_folder).exists() and not folder.exists(), 30)


def test_a_fork_neither_keeps_the_guard_waiting_nor_is_it_ended_by_the_parents_end_alone() -> None:
    wait = """
    import os, time
    if os.fork() == 0:
        os.closerange(0, 3)
        time.sleep(1000)
    print(os.getpid(), flush=True)
    sys.stdin.read()"""
    with parent(wait=wait) as (process, pids, folder):
        assert process.stdout
        process.stdout.readline()
        forks = [pid for pid in _children_of(process.pid) if pid not in pids and "child_guard" not in _command(pid)]
        process.kill()
        process.wait()
        until(lambda: not any(map(is_alive, pids)) and not folder.exists(), 30)
        for pid in forks:
            os.kill(pid, signal.SIGKILL)
        assert len(forks) == 1


def _children_of(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_the_end_is_kind_first_and_comes_to_the_whole_group() -> None:
    script = "trap 'exit 7' TERM; sleep 1000 & echo $!; wait"
    with child_processes.start(["bash", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        sleeper = int(process.stdout.readline())
        assert child_processes.end(process) == 7
    until(lambda: not is_alive(sleeper), 30)


def test_what_does_not_end_is_killed() -> None:
    with child_processes.start(["bash", "-c", "trap '' TERM; echo; sleep 1000"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert child_processes.end(process, grace_s=0.1) == -signal.SIGKILL
        assert child_processes.end(process) == -signal.SIGKILL


def test_run_returns_what_was_printed_and_kills_with_its_group_what_takes_too_long(tmp_path: Path) -> None:
    done = child_processes.run(["bash", "-c", "echo out; echo err >&2; exit 3"], 30.0, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    pid = tmp_path / "pid"
    with pytest.raises(subprocess.TimeoutExpired):
        child_processes.run(["bash", "-c", f"sleep 1000 & echo $! > {pid}; wait"], 0.5)
    until(lambda: not pid.exists() or not is_alive(int(pid.read_text())), 30)


STOPPING = """
import os, signal, sys
from marsmith.child_processes import StopRequestedError, stop_on_signals
try:
    with stop_on_signals():
        print("up", flush=True)
        sys.stdin.read()
except StopRequestedError as error:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    print(error.number, "cleared away", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_stops_and_none_after_it_interrupts_the_end(number: signal.Signals) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STOPPING], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == f"{int(number)} cleared away\n"
        assert process.returncode == 0


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(["nohup", sys.executable, "-c", STOPPING], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        # It reads on to the end of its input.
        assert process.communicate(timeout=60)[0] == ""
        assert process.returncode == 0


def test_handlers_are_put_back_where_nothing_came() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with child_processes.stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


IN_A_FINALIZER = """
import os, signal, time, weakref
from marsmith.child_processes import StopRequestedError, stop_on_signals

class Resource:
    pass

def release():
    os.kill(os.getpid(), signal.SIGTERM)
    # The signal's handler runs in here at the latest, and Python drops what it raises.
    time.sleep(0.01)

resource = Resource()
weakref.finalize(resource, release)
try:
    with stop_on_signals():
        del resource
        time.sleep(60)
except StopRequestedError as error:
    print(error.number)
"""


def test_a_signal_that_comes_in_a_finalizer_is_not_lost() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_FINALIZER], capture_output=True, text=True, check=True)
    assert done.stdout == f"{int(signal.SIGTERM)}\n"
