"""End a process without taking PyTorch apart, which costs up to half a second and leaves nothing that anybody needs."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Run ``main``, and end this process with what it returns.

    Everything ends as it always does: threads are waited for, exit handlers run, output is written. Only then, where
    torch has been imported, the process leaves: its modules and libraries go with it, not one by one.
    """
    code = 1

    def leave() -> None:
        if "torch" not in sys.modules:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            # Python has words and an exit code of its own for output that nobody takes.
            return
        os._exit(code)

    # Handlers run in the order that is the reverse of theirs: this one comes last.
    atexit.register(leave)
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    sys.exit(code)
