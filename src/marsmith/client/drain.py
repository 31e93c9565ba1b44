"""Drain: wait until a version has no requests left, neither in its queue nor in its workers.

TorchServe cuts requests in flight when a version is unregistered or scaled down, and it does not report them: describe
counts the requests that wait, not those that run. They are found with probes. A probe is a ``describe`` request to the
handler itself. It waits in the same queue as predictions, first in first out, and a worker does one thing after the
other. A worker that has answered a probe has therefore finished all earlier requests. Our handlers report their process
id in the answer. When every ready worker has answered a probe, all earlier requests are done.

If a handler does not report its process id, a probe counts only if there is a single worker. With several workers a
quiet period is necessary: after the queue is empty, the server ends any worker that takes longer for a request than the
version's response timeout.

No probe is sent while requests wait: the server cannot put a probe back into a full queue, and loses the batch with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from marsmith.client.deadline import Deadline
from marsmith.errors import DeadlineError, NoWorkerError, RequestRejectedError

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client, VersionStatus

# Time until a request that was sent to the default version just before the switch is in the queue, in seconds.
SETTLE_S = 0.1
POLL_S = 0.1
PROBE_DEADLINE_S = 10.0
# Minimum time limit of a look, even if the caller does not want to wait.
FIRST_LOOK_S = 0.5

Step = Literal["done", "probe", "wait"]


@dataclass(frozen=True)
class Evidence:
    """What is known so far.

    Attributes:
        answered: processes that have answered a probe.
        anonymous: whether a probe was answered by a handler that does not report its process id.
        quiet_s: time since the queue became empty, in seconds.
    """

    answered: frozenset[int] = frozenset()
    anonymous: bool = False
    quiet_s: float = 0.0


@dataclass(frozen=True)
class DrainProgress:
    """Progress of a drain.

    Attributes:
        pending: number of requests in the queue.
        busy: number of ready workers that may still have requests in flight.
        workers: number of ready workers.
    """

    pending: int
    busy: int
    workers: int


def next_step(status: VersionStatus, evidence: Evidence) -> Step:
    """Decide whether a version is drained, or what to do next."""
    if status.queue_pending:
        return "wait"
    busy = unproven(status, evidence)
    # A worker that is not ready has no requests in flight.
    if not busy or (evidence.anonymous and status.ready_workers == 1):
        return "done"
    if evidence.anonymous:
        return "done" if evidence.quiet_s >= quiet_period_s(status) else "wait"
    return "probe"


def unproven(status: VersionStatus, evidence: Evidence) -> frozenset[int]:
    """Return the processes of ready workers that may still have requests in flight."""
    return frozenset(worker.pid for worker in status.workers if worker.status == "READY") - evidence.answered


def quiet_period_s(status: VersionStatus) -> float:
    """Return how long a version can still be busy after its queue is empty, in seconds."""
    return status.response_timeout_s + status.max_batch_delay_ms / 1000 + 1.0


def drain(
    client: Client,
    model: str,
    version: str,
    *,
    timeout_s: float,
    on_progress: Callable[[DrainProgress], None] | None = None,
) -> None:
    """Wait until ``version`` has answered all its requests. Nothing is changed.

    New requests to the version must stop first: move the default version away, and let no client name this one.
    Requests that arrive during the drain are waited for while they are in the queue, and may be missed when a worker
    has them. Handlers that process several batches concurrently (``asyncCommunication``, continuous batching) need the
    quiet period. A streaming handler may take longer than that.

    Args:
        client: client of the server, with the management API.
        model: model name.
        version: the version to wait for.
        timeout_s: maximum wait, in seconds.
        on_progress: called after every look at the version.

    Raises:
        DeadlineError: requests were left after ``timeout_s``.
        NotFoundError: the version is not registered.
        ClientError: the server does not answer.
    """
    deadline = Deadline(timeout_s)
    time.sleep(min(SETTLE_S, timeout_s))
    evidence, quiet_since = Evidence(), time.monotonic()
    status = client.describe(model, version, deadline_s=max(FIRST_LOOK_S, deadline.left_s))[0]
    while True:
        if status.queue_pending:
            quiet_since = time.monotonic()
        evidence = replace(evidence, quiet_s=time.monotonic() - quiet_since)
        step = next_step(status, evidence)
        busy = 0 if step == "done" else len(unproven(status, evidence))
        if on_progress:
            on_progress(DrainProgress(status.queue_pending, busy, status.ready_workers))
        if step == "done":
            return
        late = _too_late(status, busy, timeout_s)
        if step == "probe" and deadline.left_s:
            evidence = _probed(client, model, version, evidence, min(deadline.left_s, PROBE_DEADLINE_S))
        if step == "wait" or len(unproven(status, evidence)) == busy:
            time.sleep(min(POLL_S, deadline.left_s))
        status = _looked_at(client, status, deadline, late)


def _looked_at(client: Client, before: VersionStatus, deadline: Deadline, late: DeadlineError) -> VersionStatus:
    """Describe a version again; raise ``late`` if there is no time for it."""
    if not deadline.left_s:
        raise late
    try:
        return client.describe(before.model_name, before.model_version, deadline_s=deadline.left_s)[0]
    except DeadlineError:
        raise late from None


def _probed(client: Client, model: str, version: str, evidence: Evidence, deadline_s: float) -> Evidence:
    try:
        process = client.probe(model, version, deadline_s=deadline_s)
    except (DeadlineError, NoWorkerError):
        return evidence
    except RequestRejectedError:
        # The handler does not support probes. Its refusal shows that it had finished all earlier requests.
        return replace(evidence, anonymous=True)
    if process is None:
        return replace(evidence, anonymous=True)
    return replace(evidence, answered=evidence.answered | {process})


def _too_late(status: VersionStatus, busy: int, timeout_s: float) -> DeadlineError:
    return DeadlineError(
        f"{status.model_name}:{status.model_version} still had work after {timeout_s:g} s: {status.queue_pending} "
        f"requests waited, and {busy} of {status.ready_workers} workers may have had one in hand",
        tip="wait longer, or find the clients that still name this version; unregistering it now cuts that work",
    )
