"""The management API: read and change the registered models.

TorchServe's defaults here are traps: a scale without a minimum means one worker, and a register with a JSON body caps
the batch at 2. Every value is therefore sent as a query parameter, or left to the model config on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from marsmith.client.deadline import Deadline
from marsmith.client.endpoint import Endpoint
from marsmith.client.failures import failure, was_not_taken
from marsmith.client.http import HttpReply, HttpRequest
from marsmith.client.retries import retry_after_s
from marsmith.client.version_status import (
    READY,
    RegisteredModel,
    Registration,
    VersionStatus,
    Worker,
    flag,
    parse_version,
)
from marsmith.errors import (
    ClientError,
    NotFoundError,
    NoWorkerError,
    OverloadedError,
    UsageError,
)
from marsmith.names import check_model_name, check_named_version, did_you_mean

__all__ = [
    "READY",
    "RegisteredModel",
    "Registration",
    "VersionStatus",
    "Worker",
    "describe",
    "handler_facts",
    "list_models",
    "parse_version",
    "register",
    "scale",
    "set_default",
    "unregister",
    "why_not_taken",
    "with_known_names",
]

# Loading a model may take its startupTimeout, 120 s by default, for each worker in turn.
LOADING_DEADLINE_S = 600.0
# Unregistering ends the workers; TorchServe allows 120 s for this by default.
UNREGISTER_DEADLINE_S = 130.0
PAGE = 100


async def list_models(api: Endpoint) -> list[RegisteredModel]:
    """Return the registered models, sorted by name."""
    found = []
    for name in await _names(api):
        try:
            default = (await _described(api, name))[0]
        except NotFoundError:
            continue  # The model was unregistered after the list was made.
        found.append(RegisteredModel(name, default["modelVersion"], default["modelUrl"]))
    return found


async def describe(api: Endpoint, model: str, version: str | None = None) -> list[VersionStatus]:
    """Return the versions of ``model`` in the server's order, or only the named one."""
    check_model_name(model)
    default = (await _described(api, model))[0]["modelVersion"]
    which = "all" if version is None else check_named_version(version)
    return [parse_version(item, default) for item in await _described(api, model, which)]


async def handler_facts(api: Endpoint, model: str, version: str) -> Mapping[str, Any]:
    """Ask the handler of a version to describe itself, in the queue of its predictions.

    Returns:
        What the handler reports; empty if it reports nothing.
    """
    request = HttpRequest("GET", api.url, _path(model, version), {"customized": "true"})
    reply = await api.once(request, api.deadline)
    if was_not_taken(reply):
        raise await why_not_taken(api, model, version, [])
    metadata = _checked(reply, _subject(model, version)).json()[0].get("customizedMetadata")
    return metadata if isinstance(metadata, dict) else {}


async def register(api: Endpoint, registration: Registration) -> str:
    """Register an archive and return the server's message.

    If the reply is lost, the request is sent again. It is then not a conflict that the version is registered already.
    """
    parameters = registration.parameters()
    attempts = 0

    async def attempt(deadline: Deadline) -> str:
        nonlocal attempts
        attempts += 1
        reply = await api.once(HttpRequest("POST", api.url, ("models",), parameters), deadline)
        if reply.status == 409 and attempts > 1:
            return f"{registration.archive} is registered; the reply was lost"
        return _status(_checked(reply, registration.archive))

    return await api.insist(attempt, idempotent=True)


async def unregister(api: Endpoint, model: str, version: str | None = None) -> str:
    """Unregister a version; None: the default version, which the server refuses while there are others.

    If the reply is lost, the request is sent again. It is then not a failure that the version is not found. Without a
    version no retry is possible, because the default version may have changed.
    """
    path, attempts = _path(model, version), 0

    async def attempt(deadline: Deadline) -> str:
        nonlocal attempts
        attempts += 1
        reply = await api.once(HttpRequest("DELETE", api.url, path), deadline)
        if reply.status == 404 and attempts > 1:
            return f"{_subject(model, version)} is unregistered; the reply was lost"
        return _status(_checked(reply, _subject(model, version)))

    return await api.insist(attempt, idempotent=version is not None)


async def scale(
    api: Endpoint,
    model: str,
    version: str | None,
    *,
    workers: tuple[int, int | None],
    synchronous: bool = True,
) -> str:
    """Set the minimum and maximum number of workers of a version; a maximum of None equals the minimum.

    Raises:
        UsageError: the numbers are inconsistent; TorchServe would accept them.
    """
    least, most = workers[0], workers[0] if workers[1] is None else workers[1]
    if not 0 <= least <= most:
        raise UsageError(f"a version cannot have from {least} to {most} workers", tip="0 <= least <= most")
    parameters = {"min_worker": str(least), "max_worker": str(most), "synchronous": flag(synchronous)}
    # Setting the same numbers twice is safe.
    reply = await api.call("PUT", *_path(model, version), parameters=parameters, idempotent=True)
    return _status(_checked(reply, _subject(model, version)))


async def set_default(api: Endpoint, model: str, version: str) -> str:
    """Set the default version."""
    reply = await api.call("PUT", *_path(model, version), "set-default", idempotent=True)
    return _status(_checked(reply, _subject(model, version)))


async def with_known_names(api: Endpoint | None, error: NotFoundError, model: str) -> NotFoundError:
    """Add the registered names to ``error``, if the server returns them; the nearest name first."""
    if api is None:
        return error
    try:
        names = await _names(api)
        versions = [item["modelVersion"] for item in await _described(api, model, "all")] if model in names else []
    except ClientError:
        return error
    if versions:
        return NotFoundError(error.message, tip=f"registered versions of {model}: {', '.join(versions)}")
    known = f"registered models: {', '.join(names) or 'none'}"
    return NotFoundError(f"{error.message}{did_you_mean(model, names)}", tip=known)


async def why_not_taken(
    api: Endpoint | None, model: str, version: str | None, seconds: Sequence[float]
) -> NoWorkerError | OverloadedError:
    """Distinguish a version without workers from one with a full job queue: the server says "no worker" in both cases.

    Args:
        api: the management API; None if it is unknown.
        model: model name.
        version: model version; None: the default version.
        seconds: recent durations of answers, to estimate the time of the next attempt.
    """
    subject = _subject(model, version)
    unknown = f"{subject}: there is no worker, or the job queue is full; only the management API shows which"
    if api is None:
        # Both cases allow another attempt.
        return NoWorkerError(unknown, restarting=True)
    try:
        item = (await _described(api, model, version))[0]
    except ClientError as error:
        return NoWorkerError(f"{unknown}, and it does not answer: {error.message}", restarting=True)
    return _not_taken(parse_version(item, item["modelVersion"]), subject, seconds)


def _not_taken(status: VersionStatus, subject: str, seconds: Sequence[float]) -> NoWorkerError | OverloadedError:
    if not status.ready_workers:
        return NoWorkerError(
            f"{subject}: none of its {len(status.workers)} workers is ready",
            restarting=bool(status.workers or status.min_workers),
            tip="marsmith status; the logs say why",
        )
    wait_s = retry_after_s(seconds, status.queue_pending, status.ready_workers * status.batch_size)
    return OverloadedError(
        f"{subject}: the job queue was full; {status.queue_pending} wait now, for {status.ready_workers} workers",
        retry_after_s=wait_s,
        tip=f"send it again in {wait_s:.2g} s; or more workers, or a larger jobQueueSize in the model config",
    )


async def _names(api: Endpoint) -> list[str]:
    names: list[str] = []
    page: str | None = "0"
    while page is not None:
        reply = await api.call("GET", "models", parameters={"limit": str(PAGE), "next_page_token": page})
        data = _checked(reply, "the list of models").json()
        names += [item["modelName"] for item in data["models"]]
        page = data.get("nextPageToken")
    return names


async def _described(api: Endpoint, model: str, version: str | None = None) -> list[dict[str, Any]]:
    reply = await api.call("GET", *_path(model, version))
    found: list[dict[str, Any]] = _checked(reply, _subject(model, version)).json()
    return found


def _path(model: str, version: str | None) -> tuple[str, ...]:
    check_model_name(model)
    return ("models", model) if version is None else ("models", model, check_named_version(version))


def _subject(model: str, version: str | None) -> str:
    return f"model {model}" if version is None or version == "all" else f"model {model}:{version}"


def _checked(reply: HttpReply, subject: str) -> HttpReply:
    error = failure(reply, subject)
    if error:
        raise error
    return reply


def _status(reply: HttpReply) -> str:
    return str(reply.json().get("status", ""))
