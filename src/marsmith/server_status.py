"""What a running server is and serves, as one value that can be printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from marsmith import run_state, server
from marsmith.client import Client, VersionStatus
from marsmith.errors import NotRunningError
from marsmith.run_state import RunState
from marsmith.settings import Project


@dataclass(frozen=True)
class ServerStatus:
    """A running server and the versions that it serves."""

    state: RunState
    versions: tuple[VersionStatus, ...]

    def as_data(self) -> dict[str, Any]:
        """Return the status as plain data for JSON."""
        return {
            "pid": self.state.pid,
            "folder": str(self.state.folder),
            "addresses": self.addresses(),
            "tokens": self.state.tokens,
            "versions": [_version_data(version) for version in self.versions],
        }

    def addresses(self) -> dict[str, str]:
        """Return where each API listens."""
        return {
            "inference": self.state.inference,
            "management": self.state.management,
            "metrics": f"{self.state.metrics}/metrics",
            "grpc inference": self.state.grpc_inference,
            "grpc management": self.state.grpc_management,
        }


def server_status(project: Project) -> ServerStatus:
    """Ask the project's server what it serves.

    Raises:
        NotRunningError: no server runs, or the one that ran has died.
        ClientError: it does not answer.
    """
    state = run_state.read(project)
    if not server.is_alive(state):
        raise NotRunningError(
            f"the server of {project.root} has died (it was pid {state.pid})",
            tip=f"marsmith serve starts it again; its logs are in {project.run / 'logs'}",
        )
    with Client.for_project(project) as client:
        names = sorted({model.name for model in client.models()})
        return ServerStatus(state, tuple(version for name in names for version in _sorted(client.describe(name))))


def _sorted(versions: Iterable[VersionStatus]) -> list[VersionStatus]:
    return sorted(versions, key=lambda version: version.model_version)


def _version_data(version: VersionStatus) -> dict[str, Any]:
    return {
        "model": version.model_name,
        "version": version.model_version,
        "default": version.default,
        "batch_size": version.batch_size,
        "max_batch_delay_ms": version.max_batch_delay_ms,
        "response_timeout_s": version.response_timeout_s,
        "queue_pending": version.queue_pending,
        "queue_remaining": version.queue_remaining,
        "workers": [
            {
                "id": worker.id,
                "pid": worker.pid,
                "status": worker.status,
                "gpu": worker.gpu,
                "memory_bytes": worker.memory_bytes,
            }
            for worker in version.workers
        ],
    }
