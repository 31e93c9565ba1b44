"""The management API: what is registered, how it runs, and how to change that.

TorchServe's defaults here are traps (a scale without a minimum means one worker, a register with a JSON body caps the
batch at 2), so every value is sent, as a query parameter, or left to the model config on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from marsmith.endpoint import Endpoint
from marsmith.errors import (
    ClientError,
    FormatError,
    NotFoundError,
    NoWorkerError,
    OverloadedError,
    UsageError,
)
from marsmith.failures import failure
from marsmith.names import check_model_name, check_model_version, did_you_mean
from marsmith.rest import Reply

READY = "READY"
# Loading a model may take its startupTimeout, 120 s by default, for one worker after the other.
LOADING_DEADLINE_S = 600.0
PAGE = 100

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.+]*")
_URL = re.compile(r"https?://[^\s]+")


@dataclass(frozen=True)
class RegisteredModel:
    """One model that the server knows.

    Attributes:
        name: the model name.
        default_version: the version that answers when none is named.
        archive_url: what the default version was registered from: a file name in the model store, or a URL.
    """

    name: str
    default_version: str
    archive_url: str


@dataclass(frozen=True)
class Worker:
    """One worker process of a version.

    Attributes:
        id: TorchServe's name for it.
        pid: its process; 0 while it has none.
        status: ``READY`` once the model is loaded, ``UNLOADING`` before and after.
        gpu: whether it runs on a GPU.
        memory_bytes: resident memory as TorchServe last measured it; 0 before.
        started: when it was started, as the server writes the time.
    """

    id: str
    pid: int
    status: str
    gpu: bool
    memory_bytes: int
    started: str


@dataclass(frozen=True)
class VersionStatus:
    """One registered version, as describe gives it: times in the units that the names say."""

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
        """How many workers can answer."""
        return sum(worker.status == READY for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether there are workers, all that there must be, and all of them can answer."""
        return bool(self.workers) and self.ready_workers >= max(1, self.min_workers)


@dataclass(frozen=True)
class Registration:
    """How to register an archive; None leaves a value to the model config, then to the server.

    Attributes:
        archive: file name in the server's model store, or a URL that its ``allowed_urls`` admits.
        initial_workers: workers to start; minWorkers of a model config wins over it.
        synchronous: wait until the workers have loaded the model.
        batch_size, max_batch_delay_ms: these win over the model config's (seen on a live 0.12.0).
        response_timeout_s, startup_timeout_s: the model config's win over these.
    """

    archive: str
    initial_workers: int | None = None
    synchronous: bool = True
    batch_size: int | None = None
    max_batch_delay_ms: int | None = None
    response_timeout_s: int | None = None
    startup_timeout_s: int | None = None

    def parameters(self) -> dict[str, str]:
        """Return the query of the request.

        Raises:
            UsageError: the archive is neither a file name nor a URL.
        """
        if not (_FILE_NAME.fullmatch(self.archive) or _URL.fullmatch(self.archive)) or ".." in self.archive:
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
        return {"url": self.archive, "synchronous": _flag(self.synchronous), **given}


def list_models(api: Endpoint) -> list[RegisteredModel]:
    """Return the registered models, sorted by name."""
    found = []
    for name in _names(api):
        try:
            default = _described(api, name)[0]
        except NotFoundError:
            continue  # Unregistered since the list was made.
        found.append(RegisteredModel(name, default["modelVersion"], default["modelUrl"]))
    return found


def describe(api: Endpoint, model: str, version: str | None = None) -> list[VersionStatus]:
    """Return the versions of ``model``, or the one named; None: all of them, in the server's order."""
    check_model_name(model)
    default = _described(api, model)[0]["modelVersion"]
    which = "all" if version is None else check_model_version(version)
    return [parse_version(item, default) for item in _described(api, model, which)]


def register(api: Endpoint, registration: Registration) -> str:
    """Register an archive and return what the server says about it."""
    parameters = registration.parameters()
    reply = api.call("POST", "models", parameters=parameters, deadline_s=LOADING_DEADLINE_S)
    return _status(_checked(reply, registration.archive))


def unregister(api: Endpoint, model: str, version: str | None = None) -> str:
    """Unregister a version; None: the default one, which the server refuses while there are others."""
    return _status(_checked(api.call("DELETE", *_path(model, version)), _subject(model, version)))


def scale(
    api: Endpoint, model: str, version: str | None, *, workers: tuple[int, int | None], synchronous: bool = True
) -> str:
    """Set the least and the most workers of a version; a most of None means as many as the least."""
    least, most = workers
    parameters = {
        "min_worker": str(least),
        "max_worker": str(least if most is None else most),
        "synchronous": _flag(synchronous),
    }
    reply = api.call("PUT", *_path(model, version), parameters=parameters, deadline_s=LOADING_DEADLINE_S)
    return _status(_checked(reply, _subject(model, version)))


def set_default(api: Endpoint, model: str, version: str) -> str:
    """Choose the version that answers when none is named."""
    reply = api.call("PUT", *_path(model, version), "set-default")
    return _status(_checked(reply, _subject(model, version)))


def with_known_names(api: Endpoint | None, error: NotFoundError, model: str) -> NotFoundError:
    """Add to ``error`` what is registered, where the server tells; the nearest name first."""
    if api is None:
        return error
    try:
        names = list(_names(api))
        versions = [item["modelVersion"] for item in _described(api, model, "all")] if model in names else []
    except ClientError:
        return error
    if versions:
        return NotFoundError(error.message, tip=f"registered versions of {model}: {', '.join(versions)}")
    known = f"registered models: {', '.join(names) or 'none'}"
    return NotFoundError(f"{error.message}{did_you_mean(model, names)}", tip=known)


def why_not_taken(api: Endpoint | None, model: str, version: str | None) -> ClientError:
    """Tell a version without workers from one whose job queue is full: the server says "no worker" to both."""
    subject = _subject(model, version)
    unknown = f"{subject}: there is no worker, or the job queue is full; only the management API tells which"
    if api is None:
        return NoWorkerError(unknown)
    try:
        item = _described(api, model, version)[0]
    except ClientError as error:
        return NoWorkerError(f"{unknown}, and it does not answer: {error.message}")
    status = parse_version(item, item["modelVersion"])
    if status.ready_workers:
        return OverloadedError(
            f"{subject}: the job queue was full; {status.queue_pending} wait now, for {status.ready_workers} workers",
            tip="send it again in a moment; or more workers, or a larger jobQueueSize in the model config",
        )
    return NoWorkerError(
        f"{subject}: none of its {len(status.workers)} workers is ready", tip="marsmith status; the logs say why"
    )


def parse_version(item: Mapping[str, Any], default_version: str) -> VersionStatus:
    """Read one element of what describe answers.

    Raises:
        FormatError: it lacks a field.
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


def _names(api: Endpoint) -> Iterator[str]:
    page: str | None = "0"
    while page is not None:
        reply = api.call("GET", "models", parameters={"limit": str(PAGE), "next_page_token": page})
        data = _checked(reply, "the list of models").json()
        yield from (item["modelName"] for item in data["models"])
        page = data.get("nextPageToken")


def _described(api: Endpoint, model: str, version: str | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _checked(api.call("GET", *_path(model, version)), _subject(model, version)).json()
    return found


def _path(model: str, version: str | None) -> tuple[str, ...]:
    check_model_name(model)
    return ("models", model) if version is None else ("models", model, check_model_version(version))


def _subject(model: str, version: str | None) -> str:
    return f"model {model}" if version is None or version == "all" else f"model {model}:{version}"


def _checked(reply: Reply, subject: str) -> Reply:
    error = failure(reply, subject)
    if error:
        raise error
    return reply


def _status(reply: Reply) -> str:
    return str(reply.json().get("status", ""))


def _flag(value: bool) -> str:
    return "true" if value else "false"
