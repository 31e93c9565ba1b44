"""Look in the background whether someone else changes a model while its rollout goes on."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from marsmith import run_state
from marsmith.client.blocking_client import Client
from marsmith.deploy.rollout.plan import Situation
from marsmith.deploy.rollout.site import situation_of
from marsmith.errors import MarsmithError
from marsmith.project import Project
from marsmith.server import lifecycle
from marsmith.state.journal import Change

_PAUSE_S = 1.0
# On a machine with GPUs the frontend calls nvidia-smi for each worker: a look may use a twentieth of the time.
_SHARE = 20
_DEADLINE_S = 30.0


class Lookout(Protocol):
    """Looks for changes by someone else."""

    def begin(self, change: Change) -> None:
        """Begin with the change that the rollout is making."""

    def look(self) -> str | None:
        """Return what someone else has changed; None if nothing is known of it. Does not wait."""


def change_by_others(change: Change, seen: Situation) -> str | None:
    """Return what someone else has changed since the canary got its workers; None if nothing."""
    version, before = change.target, change.before
    if before is None:
        return None
    if seen.default != before.version:
        return f"{seen.default} was made the default version by another command"
    if version.version not in seen.workers:
        return f"{version.version} was unregistered by another command"
    for release in (version, before):
        workers = seen.workers.get(release.version)
        if workers is not None and release.workers and workers != release.workers:
            return f"{release.version} was given {workers} workers by another command"
    return None


class ServerLookout:
    """Asks the server about once a second, in a thread of its own, because a busy server may answer late."""

    def __init__(self, project: Project, model: str) -> None:
        self._project, self._model = project, model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"lookout {model}")
        self._look: Future[str | None] | None = None
        self._change: Change | None = None
        self._next_s = 0.0

    def begin(self, change: Change) -> None:
        """Begin with the change that the rollout is making."""
        self._change = change

    def look(self) -> str | None:
        """Return what someone else has changed; None if nothing is known of it."""
        if self._look and self._look.done():
            found, self._look = self._look.result(), None
            return found
        if self._look is None and self._change and time.monotonic() >= self._next_s:
            self._look = self._pool.submit(self._ask, self._change)
        return None

    def close(self) -> None:
        """Stop asking."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, change: Change) -> str | None:
        began = time.monotonic()
        try:
            seen = settled_situation(self._project, self._model)
            return change_by_others(change, seen) if seen else None
        except MarsmithError:
            return None
        finally:
            now = time.monotonic()
            self._next_s = now + max(_PAUSE_S, _SHARE * (now - began))


def settled_situation(project: Project, model: str) -> Situation | None:
    """Return the state of a model; None while the server starts again, and loads its versions one by one.

    Raises:
        MarsmithError: the server does not run or does not answer.
    """
    state = run_state.read(project)
    if not (state.ready and lifecycle.is_alive(state)):
        return None
    with Client.of(state, deadline_s=_DEADLINE_S) as client:
        seen = situation_of(client.describe(model))
    after = run_state.read(project)
    return seen if after.ready and after.pid == state.pid else None
