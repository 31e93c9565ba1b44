"""Whether a server is ready: what /ready answers."""

from __future__ import annotations

from collections.abc import Iterable

from marsmith.client.version_status import VersionStatus
from marsmith.server.outlook import Look
from marsmith.server.placeholder import is_placeholder


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
    if not look.seen_s:
        return "the server is starting"
    if not look.answers:
        return "TorchServe does not answer"
    if not look.versions:
        return "no model is registered"
    models = {each.model_name for each in look.versions}
    for file in left_out:
        # Another version of a model that is served may be missing.
        if not any(file.startswith(f"{model}-") for model in models):
            return f"{file} is left out"
    return next(filter(None, (_unready_version(each) for each in look.versions if each.default)), None)


def _unready_version(status: VersionStatus) -> str | None:
    name = f"{status.model_name}:{status.model_version}"
    if is_placeholder(status):
        return f"{name} is left out"
    if not status.ready_workers:
        return f"{name} has no ready worker"
    if not status.queue_remaining:
        return f"the job queue of {name} is full ({status.queue_pending} requests)"
    return None
