"""Wait until a version has no work left: nothing in its queue, nothing in the hands of its workers.

TorchServe cuts what a version has in hand when it is unregistered or scaled down, and tells nobody what that is:
describe counts the requests that wait, not those that run. What it does tell is found out with probes. A probe is a
``describe`` that asks the handler itself: it waits in the same queue as predictions, first in first out, and a worker
does one thing after the other. So a worker that has answered a probe has finished all that it took before. Our handlers
say in the answer which process they are; once every ready worker has answered one, all earlier work is done.

A handler that does not say it is believed where it is the only worker. With more of them a quiet period is waited for:
once the queue is empty, the server ends a worker that holds a request longer than the version's response timeout.

No probe is sent while requests wait: into a full queue the server cannot put one back, and loses the batch with it.
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

# A request that asked for the default version just before it moved is in the queue by then.
SETTLE_S = 0.1
POLL_S = 0.1
PROBE_DEADLINE_S = 10.0
# Also for who does not want to wait at all.
FIRST_LOOK_S = 0.5

Step = Literal["done", "probe", "wait"]


@dataclass(frozen=True)
class Evidence:
    """What is known so far.

    Attributes:
        answered: processes that have answered a probe.
        anonymous: whether a probe was answered by a handler that does not say which process it is.
        quiet_s: for how long the queue has been empty.
    """

    answered: frozenset[int] = frozenset()
    anonymous: bool = False
    quiet_s: float = 0.0


@dataclass(frozen=True)
class DrainProgress:
    """How far a version has been drained.

    Attributes:
        pending: requests that wait in its queue.
        busy: ready workers that may still have work in hand.
        workers: ready workers.
    """

    pending: int
    busy: int
    workers: int


def next_step(status: VersionStatus, evidence: Evidence) -> Step:
    """Decide whether a version is drained, or what to do until it is."""
    if status.queue_pending:
        return "wait"
    busy = unproven(status, evidence)
    # A worker that is not ready has nothing in hand.
    if not busy or (evidence.anonymous and status.ready_workers == 1):
        return "done"
    if evidence.anonymous:
        return "done" if evidence.quiet_s >= quiet_period_s(status) else "wait"
    return "probe"


def unproven(status: VersionStatus, evidence: Evidence) -> frozenset[int]:
    """Return the processes of ready workers that may still have work in hand."""
    return frozenset(worker.pid for worker in status.workers if worker.status == "READY") - evidence.answered


def quiet_period_s(status: VersionStatus) -> float:
    """Return how long after its queue is empty a version can still be at work, in seconds."""
    return status.response_timeout_s + status.max_batch_delay_ms / 1000 + 1.0


def drain(
    client: Client,
    model: str,
    version: str,
    *,
    timeout_s: float,
    on_progress: Callable[[DrainProgress], None] | None = None,
) -> None:
    """Wait until ``version`` has answered all that was sent to it; nothing is changed.

    Send it no new work meanwhile: move the default version away first, and let nobody name this one. Work that arrives
    during the drain is waited for as long as it stands in the queue, and may be missed once a worker has it. Handlers
    that work on several batches at once (``asyncCommunication``, continuous batching) need the quiet period; a handler
    that streams its answer may take longer than that.

    Args:
        client: of the server; it needs the management API.
        model: model name.
        version: the version to wait for.
        timeout_s: how long to wait at most, in seconds.
        on_progress: told after every look at the version.

    Raises:
        DeadlineError: there was work left after ``timeout_s``.
        NotFoundError: no such version is registered.
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
    """Describe a version once more; raise ``late`` if there is no time for that."""
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
        # The handler does not know the question. That it was asked shows that it had nothing before it.
        return replace(evidence, anonymous=True)
    if process is None:
        return replace(evidence, anonymous=True)
    return replace(evidence, answered=evidence.answered | {process})


def _too_late(status: VersionStatus, busy: int, timeout_s: float) -> DeadlineError:
    return DeadlineError(
        f"{status.model_name}:{status.model_version} still had work after {timeout_s:g} s: {status.queue_pending} "
        f"requests waited, and {busy} of {status.ready_workers} workers may have had one in hand",
        tip="wait longer, or see who still names this version; unregistering it now cuts that work",
    )
