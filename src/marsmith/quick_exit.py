"""End a process without the destructors of PyTorch, which take up to half a second."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run_and_exit(main: Callable[[], int]) -> NoReturn:
    """Run ``main``, and end this process with its result as exit code.

    Threads are joined, exit handlers run, and output is flushed as usual. Then, if torch was imported, the process ends
    without unloading modules and libraries one by one.
    """
    code = 1

    def leave() -> None:
        if "torch" not in sys.modules:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            # Python has its own message and exit code for output that cannot be written.
            return
        os._exit(code)

    # Exit handlers run in reverse order of registration, so this one runs last.
    atexit.register(leave)
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    sys.exit(code)
