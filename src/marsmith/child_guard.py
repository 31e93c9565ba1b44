"""Guard process: wait until the parent is gone, then end its children and remove its temporary folders.

``marsmith.child_processes`` runs this file by its path, as ``python -I -S child_guard.py MARK``. Stdin ends with the
parent. Before that it lists folders, each followed by a null byte. The module uses few parts of the standard library,
and not pathlib, because it stays in memory as long as the parent.
"""

from __future__ import annotations

import os
import signal
import sys
import time

# Every guard has it.
GUARD_VARIABLE = "MARSMITH_GUARD"
_LOOK_S = 0.01


def main(mark: bytes) -> None:
    """Wait, then end all processes with ``mark`` in their environment, and remove all listed folders."""
    # Signals to a whole group or service are meant for the parent; the guard ends last.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folders = sys.stdin.buffer.read().split(b"\0")
    _end_all(mark)
    there = [folder for folder in folders if folder and os.path.lexists(folder)]
    if there:
        from shutil import rmtree

        for folder in there:
            rmtree(folder, ignore_errors=True)


def _end_all(mark: bytes) -> None:
    while found := _marked(mark):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(_LOOK_S)


def _marked(mark: bytes) -> set[int]:
    """Return the processes with the mark and their children, except for guards, which end last."""
    parents: dict[int, int] = {}
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):  # noqa: PTH208 - see above
        try:
            environment = _read(f"/proc/{pid}/environ")
            if GUARD_VARIABLE.encode() in environment:
                continue
            # A zombie has no environment.
            if mark in environment:
                found.add(pid)
            parents[pid] = int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
    while added := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= added
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - see above
        return file.read()


if __name__ == "__main__":
    main(sys.argv[1].encode())
