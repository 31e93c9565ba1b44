"""Warm workers: forks of a process that has loaded torch, TorchServe and the weights.

Each fork imports the handler anew, so that no state of an older edit is left. It shares the memory of the weights with
its parent until it writes to it. The alternative, reloading modules in one process, is faster by a few milliseconds,
but wrong if two modules keep references to each other's old objects. CUDA does not survive a fork, so the parent loads
the weights to the CPU, and a handler that needs a GPU moves them. OpenMP's threads do not survive either, and a fork
would wait for them forever. The parent therefore computes nothing, and loads the weights with one thread.
"""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from marsmith.child_processes import begin_as_child, marked


class ForkedProcess:
    """A fork of this process, with the parts of ``subprocess.Popen`` that its owner needs.

    Attributes:
        pid: process id.
        stdout: its output, with errors.
        returncode: exit status, negative for a signal; None before ``wait``.
    """

    def __init__(self, pid: int, stdout: BinaryIO) -> None:
        self.pid = pid
        self.stdout: BinaryIO | None = stdout
        self.returncode: int | None = None

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def preload(serialized_file: Path | None, modules: Iterable[str]) -> None:
    """Load modules and weights into this process, for its forks.

    From then on, ``torch.jit.load`` of that file returns the loaded module, here and in all forks.

    Args:
        serialized_file: TorchScript file, or None. Files of another kind are left to the handler.
        modules: names to import. If an import fails, the handler imports the module and reports the error.
    """
    for name in ("ts.model_service_worker", "ts.torch_handler.base_handler", *modules):
        with suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    if serialized_file is not None:
        _keep_loaded(serialized_file.resolve())


def fork_worker(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> ForkedProcess:
    """Run a worker's command line in a fork of this process.

    Args:
        command: Python, TorchServe's worker script, and its arguments.
        folder: working folder.
        environment: variables; those that Python reads at its start have no effect.
    """
    reading, writing = os.pipe()
    # Processes that the handler starts inherit the mark; the fork itself does not have it.
    environment = marked(environment)
    with warnings.catch_warnings():
        # Python 3.12 warns of forks in a process with threads; this one runs Python code only after all threads have
        # ended.
        warnings.simplefilter("ignore", DeprecationWarning)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
    if pid == 0:
        _become_worker(parent, command, folder, environment, writing)
    os.close(writing)
    return ForkedProcess(pid, os.fdopen(reading, "rb", buffering=0))


def _become_worker(
    parent: int, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: int
) -> NoReturn:
    """Run the worker's script in this fork, and never return to the parent's code."""
    status = 1
    try:
        begin_as_child(parent)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # The recorded data belong to the parent.
        os.chdir(folder)
        logging.getLogger().handlers.clear()  # Otherwise the worker's own configuration of logging has no effect.
        sys.dont_write_bytecode = True
        _forget({path.stem for path in folder.iterdir()})
        sys.path[:0] = [part or str(folder) for part in environment["PYTHONPATH"].split(os.pathsep)]
        sys.argv = list(command[1:])
        runpy.run_path(command[1], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # No exception may unwind into the parent's code.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _forget(names: Collection[str]) -> None:
    """Drop modules and packages, with all that lies in these, so that the next import reads them anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]


def _keep_loaded(path: Path) -> None:
    import torch

    load: Any = torch.jit.load
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = load(str(path), map_location="cpu")
    except RuntimeError:
        return
    finally:
        torch.set_num_threads(threads)

    def load_once(file: Any, *args: Any, **options: Any) -> Any:
        same = isinstance(file, str | os.PathLike) and Path(file).resolve() == path
        if not same or args[1:] or options.get("_extra_files"):
            return load(file, *args, **options)
        device = options.get("map_location", args[0] if args else None)
        return module if device is None else module.to(device)

    torch.jit.load = load_once  # type: ignore[assignment]
