"""A handler's own comparison: ``compare(old, new) -> bool``, in a child process.

A handler whose replies no general rule can compare, such as texts, has a function ``compare`` in its module, or a
static method in its class. It gets two replies as JSON values. It is the code of an archive, so it never runs in this
process.
"""

from __future__ import annotations

import ast
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from marsmith import child_processes
from marsmith.archive.unpacked import UnpackedArchive
from marsmith.errors import HandlerError
from marsmith.predictions.compare import Difference, contents
from marsmith.predictions.join import Pair

NAME = "compare"
_CHILD = Path(__file__).with_name("hook_child.py")


def has_hook(archive: UnpackedArchive) -> bool:
    """Return whether the archive's handler has a ``compare``; reads its source and runs nothing."""
    try:
        tree = ast.parse(_handler(archive).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    return any(isinstance(node, ast.FunctionDef) and node.name == NAME for body in bodies for node in body)


@contextmanager
def hook(
    archive: UnpackedArchive, *, start_s: float = 60.0, answer_s: float = 10.0
) -> Iterator[Callable[[Pair], Difference]]:
    """Yield a function that compares the replies of a pair with the archive's handler, for ``Comparison``.

    The function raises HandlerError if the handler raises, gives something else than True or False, or takes too long.

    Args:
        archive: whose handler compares.
        start_s: time within which the handler's module must have been imported, in seconds.
        answer_s: time for one comparison, in seconds.

    Raises:
        HandlerError: the module cannot be imported, or has no ``compare``.
    """
    command = [sys.executable, "-P", str(_CHILD), str(_handler(archive)), NAME]
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as told:
        process = child_processes.start(command, stdin=pipe, stdout=pipe, stderr=told, cwd=archive.folder)
        child = _Child(process, told, archive.handler)
        try:
            child.answer(start_s)
            yield lambda pair: Difference(agrees=child.ask(pair, answer_s))
        finally:
            child_processes.end(process, grace_s=0.0)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()


class _Child:
    """The process that compares."""

    def __init__(self, process: subprocess.Popen[bytes], told: IO[bytes], handler: str) -> None:
        """Take the process, the file with its standard error, and the handler's name."""
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process has no pipes")
        self._process, self._told, self._handler = process, told, handler
        self._stdin, self._stdout = process.stdin, process.stdout
        self._rest = b""

    def ask(self, pair: Pair, seconds: float) -> bool:
        """Return what the handler says of a pair."""
        replies = [contents(pair.old.reply), contents(pair.new.reply)]
        try:
            self._stdin.write(json.dumps(replies).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return self.answer(seconds)

    def answer(self, seconds: float) -> bool:
        """Return the next answer."""
        answer = json.loads(self._line(seconds))
        if "error" in answer:
            raise HandlerError(f"{NAME}() of {self._handler} failed: {answer['error']}")
        return bool(answer["agrees"])

    def _line(self, seconds: float) -> bytes:
        late = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, late - time.monotonic())):
                    raise HandlerError(
                        f"{NAME}() of {self._handler} gave no answer in {seconds:g} s",
                        tip="compare less, or remove it: replies are then compared by their numbers",
                    )
                chunk = os.read(self._stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._ended()
                self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _ended(self) -> HandlerError:
        self._process.wait()
        self._told.seek(0)
        last = self._told.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return HandlerError(f"{NAME}() of {self._handler} ended its process: {last or 'without a word'}")


def _handler(archive: UnpackedArchive) -> Path:
    name = archive.handler.partition(":")[0]
    return archive.folder / (name if name.endswith(".py") else f"{name}.py")
