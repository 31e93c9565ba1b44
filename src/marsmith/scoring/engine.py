"""Answer batches with the handler of an unpacked archive: in this process if it is built on ours, else in a worker.

A handler that is built on ``marsmith_handler`` isolates its items, so that no server's worker is needed between this
process and the handler. Any other handler runs in TorchServe's own worker, as with ``marsmith run``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from marsmith.archive.manifest import parse_manifest
from marsmith.errors import ConfigError, HandlerError
from marsmith.runtime.fake_context import FakeContext
from marsmith.runtime.frontend import Request
from marsmith.runtime.library import PACKAGE
from marsmith.runtime.runner import Runner
from marsmith.strict_yaml import load_model_config

_MANIFEST = "MAR-INF/MANIFEST.json"
# The lowest status of a reply that says nothing about its own request.
_FAILURE = 500


@dataclass(frozen=True)
class Answer:
    """The reply to one input.

    Attributes:
        status: HTTP status.
        content_type: of the body; empty if the handler set none.
        body: content.
    """

    status: int
    content_type: str
    body: bytes


class WorkerLostError(Exception):
    """The handler has taken its process with it; the message says how."""


class Engine(Protocol):
    """Answers batches."""

    def answer(self, bodies: Sequence[bytes], content_types: Sequence[str]) -> list[Answer]:
        """Answer one batch, in order.

        Raises:
            WorkerLostError: the handler's process has died.
        """
        ...


class InProcess:
    """A handler of ours, in this process."""

    def __init__(self, handler: Any, context: FakeContext) -> None:
        """Use a handler that is initialized."""
        self._handler = handler
        self._context = context

    def answer(self, bodies: Sequence[bytes], content_types: Sequence[str]) -> list[Answer]:
        """Answer one batch; what the handler does not isolate fails the batch, as in a server."""
        context = self._context
        rows = context.batch(bodies, content_type=content_types)
        replies = self._handler.handle(rows, context)
        found = zip(context.statuses, context.content_types, replies, strict=True)
        return [Answer(status, kind or "", bytes(body)) for status, kind, body in found]


class InWorker:
    """Any handler, in TorchServe's worker."""

    def __init__(self, runner: Runner) -> None:
        """Use a runner that has loaded the archive."""
        self._runner = runner

    def answer(self, bodies: Sequence[bytes], content_types: Sequence[str]) -> list[Answer]:
        """Answer one batch; one that has failed as a whole is halved, so that a bad input fails alone."""
        answers = self._once(bodies, content_types)
        if len(answers) == 1 or any(answer.status < _FAILURE for answer in answers):
            return answers
        middle = len(bodies) // 2
        first = self.answer(bodies[:middle], content_types[:middle])
        return [*first, *self.answer(bodies[middle:], content_types[middle:])]

    def _once(self, bodies: Sequence[bytes], content_types: Sequence[str]) -> list[Answer]:
        requests = [Request(*each) for each in zip(bodies, content_types, strict=True)]
        replies = self._runner.run(requests)
        if self._runner.last_failure:
            raise WorkerLostError(self._runner.last_failure)
        return [Answer(reply.status, reply.content_type, reply.body) for reply in replies]


@contextmanager
def open_engine(folder: Path, *, batch_size: int, threads: int, gpu_id: int | None) -> Iterator[Engine]:
    """Load the handler of an unpacked archive, and prove the archive.

    Args:
        folder: the members.
        batch_size: largest number of inputs of a batch.
        threads: of the handler, unless its settings have a number.
        gpu_id: number of the GPU; None for the CPU.

    Raises:
        HandlerError: it does not load.
    """
    kind = _own_handler(folder)
    if kind is None:
        with Runner(folder, batch_size=batch_size, gpu_id=gpu_id) as runner:
            yield InWorker(runner)
        return
    config = _config(folder)
    model_config = {**config, "handler": {"threads": threads, **(config.get("handler") or {})}}
    context = FakeContext(folder, model_yaml_config=model_config, batch_size=batch_size, gpu_id=gpu_id)
    handler = kind()
    try:
        handler.initialize(context)
    except RuntimeError as error:
        raise HandlerError(f"the archive does not load: {error}", tip="marsmith verify ARCHIVE --replay") from None
    yield InProcess(handler, context)


def _own_handler(folder: Path) -> type[Any] | None:
    """Import the handler's module if it is ours, and return its class; None if it is to run in a worker."""
    entry = parse_manifest((folder / _MANIFEST).read_text(encoding="utf-8"), _MANIFEST).handler
    file = folder / entry
    if not (folder / PACKAGE / "base.py").is_file() or not file.is_file():
        return None
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        module = importlib.import_module(file.stem)
    except ImportError as error:
        raise HandlerError(f"the handler {entry!r} cannot be imported: {error}") from None
    return _handler_class(module)


def _handler_class(module: ModuleType) -> type[Any] | None:
    """Return the class that TorchServe would use, if it is built on ours."""
    base = importlib.import_module(f"{PACKAGE}.base").BaseHandler
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    is_ours = len(own) == 1 and issubclass(own[0], base) and not hasattr(module, "handle")
    return own[0] if is_ours else None


def _config(folder: Path) -> Mapping[str, Any]:
    """Return the model config.

    Raises:
        HandlerError: it cannot be read.
    """
    name = parse_manifest((folder / _MANIFEST).read_text(encoding="utf-8"), _MANIFEST).config_file
    try:
        return load_model_config((folder / name).read_text(encoding="utf-8"), name, ConfigError) if name else {}
    except (OSError, ValueError, ConfigError) as error:
        raise HandlerError(f"the model config {name} cannot be read: {error}") from None
