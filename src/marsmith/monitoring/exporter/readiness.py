"""Whether a server is ready: what /ready answers."""

from __future__ import annotations

from collections.abc import Iterable

from marsmith.client.version_status import VersionStatus
from marsmith.server.outlook import Look
from marsmith.server.placeholder import is_placeholder


def unhealthy(look: Look) -> str | None:
    """Return why a server cannot answer at all, as one sentence; None if it can. A full queue is no reason."""
    if not look.seen_s:
        return "the server is starting"
    if not look.answers:
        return "TorchServe does not answer"
    if not look.versions:
        return "no model is registered"
    lacking = (each for each in look.versions if each.default and (is_placeholder(each) or not each.ready_workers))
    return next((f"{_name(each)} has no ready worker" for each in lacking), None)


def unready(look: Look, left_out: Iterable[str], *, stopping: bool) -> str | None:
    """Return why a server should get no requests now, as one sentence; None if it is ready.

    Versions that are not a model's default do not count: a new one must not take the server out of service.

    Args:
        look: what the supervisor sees.
        left_out: names of the archives in the store that are not served.
        stopping: whether the server is being stopped.
    """
    if stopping:
        return "the server is being stopped"
    reason = unhealthy(look)
    if reason:
        return reason
    models = {each.model_name for each in look.versions}
    for file in left_out:
        # Another version of a model that is served may be missing.
        if not any(file.startswith(f"{model}-") for model in models):
            return f"{file} is left out"
    full = (each for each in look.versions if each.default and not each.queue_remaining)
    return next((f"the job queue of {_name(each)} is full ({each.queue_pending} requests)" for each in full), None)


def _name(status: VersionStatus) -> str:
    return f"{status.model_name}:{status.model_version}"
