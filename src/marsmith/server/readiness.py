"""Readiness of a server: every version has all its workers READY and has answered an example of its archive.

TorchServe's own ``/ping`` says Healthy while workers die, so it is not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marsmith.errors import ClientError

if TYPE_CHECKING:
    from marsmith.client.blocking_client import Client, VersionStatus

Version = tuple[str, str]


@dataclass(frozen=True)
class StartupStatus:
    """Progress of a start.

    Attributes:
        ready: versions that are ready.
        to_ask: versions whose workers are READY and whose example is not answered yet.
        waiting: for every version that is not ready, what is missing.
        listening: whether the server answers at all; a server without versions is ready then.
    """

    ready: tuple[Version, ...]
    to_ask: tuple[Version, ...]
    waiting: Mapping[Version, str]
    listening: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether the start is complete."""
        return self.listening and not self.waiting


def startup_status(
    expected: Sequence[Version],
    described: Mapping[Version, VersionStatus],
    with_examples: Collection[Version],
    answered: Collection[Version],
    unsettled: Mapping[Version, str] | None = None,
) -> StartupStatus:
    """Determine the progress of a start.

    Args:
        expected: versions to serve.
        described: status of the registered versions.
        with_examples: versions whose archive has an example.
        answered: versions that have answered it.
        unsettled: descriptions of pending changes of versions.
    """
    waiting = {version: "not registered yet" for version in expected if version not in described}
    waiting |= unsettled or {}
    to_ask = []
    for version in expected:
        status = described.get(version)
        if status is None:
            continue
        reason = _workers_missing(status)
        if reason:
            waiting[version] = reason
        elif status.workers and version in with_examples and version not in answered:
            to_ask.append(version)
            waiting.setdefault(version, "has not answered its example yet")
    ready = tuple(version for version in expected if version not in waiting)
    return StartupStatus(ready, tuple(to_ask), waiting)


def handler_facts(client: Client, model: str, version: str) -> Mapping[str, Any]:
    """Return what a version's handler reports about itself; empty if it reports nothing."""
    try:
        return client.handler_facts(model, version)
    except ClientError:
        return {}


def _workers_missing(status: VersionStatus) -> str | None:
    wanted = max(status.min_workers, len(status.workers))
    return None if status.ready_workers >= wanted else f"{status.ready_workers} of {wanted} workers ready"
