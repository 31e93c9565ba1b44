"""Run an archive's handler without a server.

The handler runs in TorchServe's own Python worker. It is started and called in the same way as by TorchServe's
frontend. Only the frontend, with its job queue and its HTTP, is left out. Handlers for the stock server therefore run
too, including the built-in ones.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from marsmith import child_processes
from marsmith.archive.unpacked import unpacked
from marsmith.errors import HandlerError, UsageError
from marsmith.runtime.frontend import WORKER_DIED, FormError, Request, RunnerReply, error_reply, to_message, to_replies
from marsmith.runtime.traceback import handler_traceback, missing_handler, summary
from marsmith.runtime.worker import Launch, WorkerEndedError, WorkerProcess
from marsmith.runtime.worker_protocol import (
    InferenceRequest,
    LoadMessage,
    WorkerMetric,
    WorkerResponse,
    decode_response,
    encode_load,
    encode_predict,
    parse_metric,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Request", "Runner", "RunnerReply"]

# SIGKILL as a signal number, and as Java and shells report it: the kernel's way to end a process that uses too much
# memory.
_KILLED = (-9, 137)
# Maximum number of lines kept of a worker's output during one batch; the oldest lines are dropped.
_KEPT_LINES = 20_000


class Runner:
    """Runs one archive's handler in a worker process; a context manager that loads the model on entry.

    Args:
        archive: a model archive (.mar, .tar.gz) or a folder with its members; a folder is not copied.
        batch_size: batch size that the worker gets at load; None for the model config's batchSize, else 1.
        gpu_id: number of the GPU; None for the CPU.
        metrics_config: file that declares the metrics of handlers, as in a server config; None for TorchServe's own.
        on_log: called with each line that the worker prints.
        launch: starts the worker's process; None for a new Python, as in a server.

    Attributes:
        last_traceback: traceback of the last batch, from the handler's first frame on; None if there was none.
        last_failure: why the worker died in the last batch; None if it did not.
        last_metrics: measurements of the worker in the last batch, in order.
        last_batch_ms: time from sending the last batch to its last reply, in milliseconds.
    """

    def __init__(
        self,
        archive: Path,
        *,
        batch_size: int | None = None,
        gpu_id: int | None = None,
        metrics_config: Path | None = None,
        on_log: Callable[[str], None] | None = None,
        launch: Launch | None = None,
    ) -> None:
        self.last_traceback: str | None = None
        self.last_failure: str | None = None
        self.last_metrics: tuple[WorkerMetric, ...] = ()
        self.last_batch_ms = 0.0
        self._path = archive
        self._wanted_batch_size = batch_size
        self._gpu_id = gpu_id
        self._metrics_config = metrics_config
        self._on_log = on_log
        self._launch = launch
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._process: WorkerProcess | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        """Load the model.

        Raises:
            MissingDependencyError: TorchServe is not installed.
            UsageError: the archive does not exist.
            ArchiveError: the archive cannot be opened.
            HandlerError: the handler does not load; the message ends with the traceback.
        """
        with self._cleanup as cleanup:
            self._archive = cleanup.enter_context(unpacked(self._path))
            cleanup.callback(self._end)
            self._load()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cleanup.close()

    @property
    def folder(self) -> Path:
        """The folder with the archive's members."""
        return self._archive.folder

    @property
    def batch_size(self) -> int:
        """The batch size that the worker got at load."""
        return self._wanted_batch_size or self._archive.batch_size

    @property
    def handler_settings(self) -> Mapping[str, Any]:
        """The model config's block ``handler``; empty if there is none."""
        return self._archive.handler_settings

    def facts(self) -> Mapping[str, Any]:
        """Return what the handler reports about itself to a describe request; empty if it reports nothing.

        Raises:
            HandlerError: the worker died before and cannot be restarted.
        """
        (reply,) = self.run([Request(b"", headers={"describe": "True"})])
        try:
            answer = reply.json() if reply.status < 400 else {}
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def run(self, requests: Sequence[Request]) -> list[RunnerReply]:
        """Send one batch and return a reply for each request, in order.

        A failure is returned as a reply too, as over HTTP. A worker that died is restarted for the next batch.

        Raises:
            UsageError: there are more requests than the batch size.
            HandlerError: the worker died before and cannot be restarted.
        """
        if len(requests) > self.batch_size:
            raise UsageError(f"{len(requests)} requests in a batch of at most {self.batch_size}")
        self._forget_last_batch()
        ids = [str(uuid.uuid4()) for _ in requests]
        parsed = [_parse(request, request_id) for request, request_id in zip(requests, ids, strict=True)]
        refused = {id_: item for id_, item in zip(ids, parsed, strict=True) if isinstance(item, RunnerReply)}
        batch = [item for item in parsed if isinstance(item, InferenceRequest)]
        replies = {**refused, **(self._run(batch) if batch else {})}
        return [replies[request_id] for request_id in ids]

    def cut(self) -> None:
        """Kill the worker, from any thread. A batch in progress fails at once."""
        process = self._process
        if process is not None:
            child_processes.kill_group(process.pid)

    def _forget_last_batch(self) -> None:
        self._lines.clear()
        self.last_traceback = self.last_failure = None
        self.last_metrics = ()
        self.last_batch_ms = 0.0

    def _run(self, batch: Sequence[InferenceRequest]) -> dict[str, RunnerReply]:
        process = self._process or self._load()
        self._lines.clear()
        ids = [request.request_id for request in batch]
        begin = time.monotonic()
        try:
            replies = to_replies(ids, _converse(process, encode_predict(batch), self._archive.response_timeout_s))
            process.drain()
        except (WorkerEndedError, TimeoutError, HandlerError) as error:
            replies = self._fail_batch(process, error, ids)
        self.last_batch_ms = (time.monotonic() - begin) * 1000
        self.last_traceback = handler_traceback(list(self._lines), self.folder)
        self.last_metrics = tuple(metric for line in self._lines if (metric := parse_metric(line)))
        return replies

    def _fail_batch(self, process: WorkerProcess, error: Exception, ids: Sequence[str]) -> dict[str, RunnerReply]:
        """End a worker that the frontend would give up, and return the replies of the frontend."""
        process.drain()
        status = process.end()
        self._process = None
        if isinstance(error, HandlerError):
            self.last_failure = error.message
        elif isinstance(error, TimeoutError):
            self.last_failure = f"no reply within the response timeout of {self._archive.response_timeout_s} s"
        else:
            self.last_failure = "the worker closed its socket" if status is None else f"it ended with status {status}"
        code = 507 if status in _KILLED else 500
        return {request_id: error_reply(code, WORKER_DIED, request_id) for request_id in ids}

    def _load(self) -> WorkerProcess:
        """Start a worker and have it load the model."""
        self._lines.clear()
        archive = self._archive
        message = LoadMessage(archive.model_name, str(archive.folder), archive.handler, self.batch_size, self._gpu_id)
        with ExitStack() as on_failure:
            try:
                process = WorkerProcess(
                    archive.folder,
                    archive.handler,
                    self._take_line,
                    metrics_config=self._metrics_config,
                    launch=self._launch,
                )
                on_failure.callback(process.end)
                (response,) = _converse(process, encode_load(message), archive.startup_timeout_s)
                process.drain()
            except WorkerEndedError:
                raise self._load_error() from None
            except TimeoutError:
                raise HandlerError(
                    f"the handler {archive.handler!r} did not load within {archive.startup_timeout_s} s",
                    tip="load less in initialize, or raise startupTimeout in the model config",
                ) from None
            if response.code != 200:
                raise self._load_error()
            on_failure.pop_all()
        self._process = process
        return process

    def _load_error(self) -> HandlerError:
        """Return why the model did not load, from the output of the worker."""
        handler = self._archive.handler
        traceback = handler_traceback(list(self._lines), self.folder)
        if traceback is None:
            tail = "\n".join(list(self._lines)[-20:])
            return HandlerError(f"the handler {handler!r} does not load: the worker ended; its last output:\n{tail}")
        if missing_handler(traceback):
            return HandlerError(
                f"the handler {handler!r} is neither a file in {self._path} nor one of TorchServe's own",
                tip=f"marsmith inspect {self._path}",
            )
        return HandlerError(f"the handler {handler!r} does not load: {summary(traceback)}\n{traceback.rstrip()}")

    def _take_line(self, line: str) -> None:
        self._lines.append(line)
        if self._on_log:
            self._on_log(line)

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


def _parse(request: Request, request_id: str) -> InferenceRequest | RunnerReply:
    try:
        return to_message(request, request_id)
    except FormError as error:
        return error_reply(500, str(error), request_id, "ErrorDataDecoderException")


def _converse(process: WorkerProcess, message: bytes, timeout_s: float) -> list[WorkerResponse]:
    """Send a message and return its responses: one, unless the handler streams."""
    process.send(message, timeout_s)
    responses = [decode_response(process)]
    while responses[-1].to_be_continued:
        process.allow(timeout_s)
        responses.append(decode_response(process))
    return responses
