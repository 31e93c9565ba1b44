"""Export of one form in a separate process.

TorchScript numbers the types that a process has seen (``___torch_mangle_3``), recipes change global state (seeds,
default dtypes), torch does not release its memory, and the threads of two engines in one process disturb each other. A
separate process for each form gives the same bytes every time, and its timing is that of a worker.

The child reads a request as one line of JSON from stdin, and writes one JSON object per line to stdout: steps, then a
result or an error. After a result it reads lines with requests for timing, until stdin ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from marsmith import child_processes
from marsmith.errors import ExportError, MarsmithError
from marsmith.export.messages import JobRequest, JobResult
from marsmith.file_errors import access_error, described
from marsmith.quick_exit import run_and_exit
from marsmith.state_files import validate


class JobProcess:
    """A child process with one form of a model.

    A context manager, which ends it.
    """

    def __init__(self, request: JobRequest) -> None:
        self._request = request
        self._folder = ExitStack()

    def __enter__(self) -> Self:
        # The child must import the same marsmith as this process.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        own_folder = child_processes.own_temporary_folder({**os.environ, "PYTHONPATH": path})
        environment = self._folder.enter_context(own_folder)
        self._child = child_processes.start(
            # -P: a file in the working folder may have the name of a module of the standard library.
            [sys.executable, "-P", "-m", "marsmith.export.process"],
            environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._folder:
            if error is not None:
                child_processes.end(self._child)
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
            self._child.wait()

    def export(self, on_step: Callable[[str], None]) -> JobResult:
        """Make the form and report its steps.

        Raises:
            ExportError: the error of the child, or the child died.
        """
        result = self._ask(asdict(self._request), on_step)["result"]
        return validate(JobResult, result, "the export process")

    def rate(self, what: str, batch_size: int, seconds: float) -> float:
        """Time ``eager`` or ``form``; return images per second."""
        question = {"what": what, "batch_size": batch_size, "seconds": seconds}
        return float(self._ask(question, lambda _: None)["rate"])

    def _ask(self, question: dict[str, Any], on_step: Callable[[str], None]) -> dict[str, Any]:
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise ExportError("the export process has no pipes")
        with suppress(BrokenPipeError):
            print(json.dumps(question), file=child.stdin, flush=True)
        for line in child.stdout:
            message: dict[str, Any] = json.loads(line)
            if "step" in message:
                on_step(message["step"])
            elif "error" in message:
                raise ExportError(message["error"], tip=message["tip"])
            else:
                return message
        code = child.wait()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        raise ExportError(f"the export process ended without a result ({ended})", tip="see its output above")


def _child() -> int:
    request = validate(JobRequest, json.loads(sys.stdin.readline()), "the export's request")
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # The output of a recipe is not a message.
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        print(json.dumps(message), file=messages, flush=True)

    try:
        with child_processes.stop_on_signals():
            _answer(request, send)
    except MarsmithError as error:
        send(error=error.message, tip=error.tip)
        return 1
    except (BrokenPipeError, child_processes.StopRequestedError):
        # No one waits for a result any more.
        return 1
    except OSError as error:
        if access_error(error) is None:
            raise
        refused = described(error, Path(request.folder))
        send(error=refused.message, tip=refused.tip)
        return 1
    return 0


def _answer(request: JobRequest, send: Callable[..., None]) -> None:
    from marsmith.export.job import open_job

    job = open_job(request, lambda step: send(step=step))
    send(result=asdict(job.run()))
    for line in sys.stdin:
        send(rate=job.rate(**json.loads(line)))


if __name__ == "__main__":
    run_and_exit(_child)
