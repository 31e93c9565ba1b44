"""Records of the management API: models, versions and workers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marsmith.errors import FormatError, UsageError

READY = "READY"

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.+]*")
_URL = re.compile(r"https?://[^\s]+")
# Archive that marsmith registers in place of a version that is left out; see placeholder.py.
_PLACEHOLDER = re.compile(r"/.+\.folder")


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model.

    Attributes:
        name: the model name.
        default_version: the version that answers when none is named.
        archive_url: origin of the default version: a file name in the model store, or a URL.
    """

    name: str
    default_version: str
    archive_url: str


@dataclass(frozen=True)
class Worker:
    """One worker process of a version.

    Attributes:
        id: id of the worker in TorchServe.
        pid: process id; 0 if it has none.
        status: ``READY`` if the model is loaded, ``UNLOADING`` before and after.
        gpu: whether it runs on a GPU.
        memory_bytes: resident memory as last measured by TorchServe; 0 before.
        started: start time, in the server's format.
    """

    id: str
    pid: int
    status: str
    gpu: bool
    memory_bytes: int
    started: str


@dataclass(frozen=True)
class VersionStatus:
    """A registered version, as describe returns it. Names give the units of times."""

    model_name: str
    model_version: str
    default: bool
    archive_url: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int
    startup_timeout_s: int
    workers: tuple[Worker, ...]
    queue_remaining: int
    queue_pending: int

    @property
    def ready_workers(self) -> int:
        """Number of workers that can answer."""
        return sum(worker.status == READY for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether there are at least the minimum number of workers, and all of them can answer."""
        return bool(self.workers) and self.ready_workers >= max(1, self.min_workers)


@dataclass(frozen=True)
class Registration:
    """Options to register an archive. None leaves a value to the model config, then to the server.

    Attributes:
        archive: file name in the server's model store, or a URL that its ``allowed_urls`` permit.
        initial_workers: number of workers to start; minWorkers of a model config takes precedence.
        synchronous: whether to wait until the workers have loaded the model.
        batch_size, max_batch_delay_ms: these take precedence over the model config (seen on a live 0.12.0).
        response_timeout_s, startup_timeout_s: the model config takes precedence over these.
    """

    archive: str
    initial_workers: int | None = None
    synchronous: bool = True
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None

    def parameters(self) -> dict[str, str]:
        """Return the query parameters.

        Raises:
            UsageError: the archive is neither a file name nor a URL.
        """
        forms = (_FILE_NAME, _URL, _PLACEHOLDER)
        if not any(form.fullmatch(self.archive) for form in forms) or ".." in self.archive:
            raise UsageError(
                f"{self.archive!r} is neither the name of an archive in the model store nor a URL",
                tip="copy the archive into the model store and register it by its file name",
            )
        numbers = {
            "initial_workers": self.initial_workers,
            "batch_size": self.batch_size,
            "max_batch_delay": self.max_batch_delay_ms,
            "response_timeout": self.response_timeout_s,
            "startup_timeout": self.startup_timeout_s,
        }
        given = {name: str(value) for name, value in numbers.items() if value is not None}
        return {"url": self.archive, "synchronous": flag(self.synchronous), **given}


def parse_version(item: Mapping[str, Any], default_version: str) -> VersionStatus:
    """Parse one element of the reply of describe.

    Raises:
        FormatError: a field is missing.
    """
    try:
        queue = item["jobQueueStatus"]
        return VersionStatus(
            model_name=item["modelName"],
            model_version=item["modelVersion"],
            default=item["modelVersion"] == default_version,
            archive_url=item["modelUrl"],
            min_workers=item["minWorkers"],
            max_workers=item["maxWorkers"],
            batch_size=item["batchSize"],
            max_batch_delay_ms=item["maxBatchDelay"],
            response_timeout_s=item["responseTimeout"],
            startup_timeout_s=item["startupTimeout"],
            workers=tuple(_parse_worker(worker) for worker in item["workers"]),
            queue_remaining=queue["remainingCapacity"],
            queue_pending=queue["pendingRequests"],
        )
    except KeyError as error:
        raise FormatError("the reply of describe", [f"has no {error.args[0]!r}"]) from None


def _parse_worker(item: Mapping[str, Any]) -> Worker:
    return Worker(
        id=item["id"],
        pid=item["pid"],
        status=item["status"],
        gpu=item["gpu"],
        memory_bytes=item["memoryUsage"],
        started=item["startTime"],
    )


def flag(value: bool) -> str:
    """Return a boolean in the form that TorchServe parses in a query."""
    return "true" if value else "false"
