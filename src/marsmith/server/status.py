"""Status of a running server as one value that can be printed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from marsmith import run_state
from marsmith.client.blocking_client import Client, VersionStatus
from marsmith.client.metrics import Counters, Traffic, is_later, read_counters, traffic
from marsmith.errors import NotRunningError, ServerError
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle, supervisor_state
from marsmith.server.front.door import Front
from marsmith.server.placeholder import stands_in, still_left_out
from marsmith.server.state import registered_versions
from marsmith.server.supervisor_state import SupervisorState
from marsmith.state.served import Version

if TYPE_CHECKING:
    from marsmith.client.management import Worker


@dataclass(frozen=True)
class FrontStatus:
    """The front of a running server.

    Attributes:
        pid: process id of Envoy; None while it is being started again.
        inference, grpc_inference: private addresses of TorchServe behind it, as in ``RunState``.
        metrics: URL of its own metrics.
        memory_bytes: resident memory of Envoy; None without a process.
    """

    pid: int | None
    inference: str
    grpc_inference: str
    metrics: str
    memory_bytes: int | None


@dataclass(frozen=True)
class ServerStatus:
    """A running server, its versions and their traffic.

    Attributes:
        state: state of the server.
        versions: registered versions, sorted.
        traffic: traffic of each version; empty if the metrics API has none.
        memory_bytes: resident memory by process, of the frontend and the workers.
        supervisor: the supervisor; None if there is none.
        uptime_s: uptime of the frontend, in seconds.
        front: the front; None if there is none.
    """

    state: RunState
    versions: tuple[VersionStatus, ...]
    traffic: Mapping[Version, Traffic] = field(default_factory=dict)
    memory_bytes: Mapping[int, int] = field(default_factory=dict)
    supervisor: SupervisorState | None = None
    uptime_s: float = 0.0
    front: FrontStatus | None = None

    def as_data(self) -> dict[str, Any]:
        """Return the status as plain data for JSON."""
        return {
            "pid": self.state.pid,
            "folder": str(self.state.folder),
            "addresses": self.addresses(),
            "front": asdict(self.front) if self.front else None,
            "tokens": self.state.tokens,
            "uptime_s": round(self.uptime_s, 1),
            "memory_bytes": self.memory_bytes.get(self.state.pid),
            "supervisor": asdict(self.supervisor) if self.supervisor else None,
            "versions": [self._version_data(version) for version in self.versions],
            "left_out": [asdict(each) for each in self.state.left_out],
        }

    def addresses(self) -> dict[str, str]:
        """Return the address of each API."""
        return {
            "inference": self.state.inference,
            "management": self.state.management,
            "metrics": f"{self.state.metrics}/metrics",
            "grpc inference": self.state.grpc_inference,
            "grpc management": self.state.grpc_management,
        }

    def traffic_of(self, version: VersionStatus) -> Traffic | None:
        """Return the traffic of a version; None if the metrics API has none."""
        return self.traffic.get((version.model_name, version.model_version))

    def worker_memory_bytes(self, version: VersionStatus) -> int:
        """Return the resident memory of all workers of a version."""
        return sum(self._memory(worker) for worker in version.workers)

    def worker_restarts(self, version: VersionStatus) -> int | None:
        """Return how often workers of a version were restarted; None without a supervisor."""
        if self.supervisor is None:
            return None
        return self.supervisor.worker_restarts.get(f"{version.model_name}:{version.model_version}", 0)

    def _memory(self, worker: Worker) -> int:
        return self.memory_bytes.get(worker.pid, worker.memory_bytes)

    def _version_data(self, version: VersionStatus) -> dict[str, Any]:
        return {
            "model": version.model_name,
            "version": version.model_version,
            "default": version.default,
            "min_workers": version.min_workers,
            "max_workers": version.max_workers,
            "ready_workers": version.ready_workers,
            "worker_restarts": self.worker_restarts(version),
            "batch_size": version.batch_size,
            "max_batch_delay_ms": version.max_batch_delay_ms,
            "response_timeout_s": version.response_timeout_s,
            "queue_pending": version.queue_pending,
            "queue_remaining": version.queue_remaining,
            "traffic": asdict(found) if (found := self.traffic_of(version)) else None,
            "workers": [
                {
                    "id": worker.id,
                    "pid": worker.pid,
                    "status": worker.status,
                    "gpu": worker.gpu,
                    "memory_bytes": self._memory(worker),
                }
                for worker in version.workers
            ],
        }


@dataclass
class StatusWatch:
    """Reads the status of a project's server repeatedly; rates and means cover the time between two readings."""

    project: Project
    _before: Counters | None = None

    def look(self) -> ServerStatus:
        """Read the status; the first reading covers the time since the start of the server.

        Raises:
            NotRunningError: the server is not running, or it has died.
            ClientError: the server does not answer.
        """
        state = _running(self.project)
        with Client.of(state) as client:
            registered = registered_versions(client)
        files = {each.file for each in state.left_out}
        versions = tuple(each for each in registered if not stands_in(each, files))
        state = replace(state, left_out=still_left_out(state.left_out, versions))
        now = read_counters(state)
        before = self._before if now and self._before and is_later(now, self._before) else None
        self._before = now
        return ServerStatus(
            state,
            versions,
            _traffic(versions, now, before),
            _memory([state.pid, *(worker.pid for version in versions for worker in version.workers)]),
            supervisor_state.read(self.project),
            max(0.0, time.time() - state.created),
            front_status(self.project, state),
        )


def server_status(project: Project) -> ServerStatus:
    """Read the status of the project's server, with its traffic since the start.

    Raises:
        NotRunningError: the server is not running, or it has died.
        ClientError: the server does not answer.
    """
    return StatusWatch(project).look()


def front_status(project: Project, state: RunState) -> FrontStatus | None:
    """Return the front of a running server; None if there is none."""
    if state.backend is None:
        return None
    front = Front.of(project)
    process, backend = front.process, state.backend
    pid = process.pid if process else None
    memory = _memory([pid]).get(pid) if pid else None
    return FrontStatus(pid, backend.inference, backend.grpc_inference, front.metrics, memory)


def _running(project: Project) -> RunState:
    supervisor = supervisor_state.read(project)
    try:
        state = run_state.read(project)
    except ServerError:
        if supervisor is None:
            raise
        state = None
    if state is not None and lifecycle.is_alive(state):
        return state
    if supervisor is not None:
        raise NotRunningError(
            f"no server runs for {project.root} right now; its supervisor (pid {supervisor.pid}): {supervisor.doing}",
            tip=f"{supervisor.last_end or 'wait'}; the logs are in {project.run / 'logs'}",
        )
    raise NotRunningError(
        f"the server of {project.root} has died (it was pid {state.pid if state else '?'})",
        tip=f"marsmith serve starts it again; its logs are in {project.run / 'logs'}",
    )


def _traffic(
    versions: Sequence[VersionStatus], now: Counters | None, before: Counters | None
) -> dict[Version, Traffic]:
    if now is None:
        return {}
    found = {}
    for status in versions:
        version = (status.model_name, status.model_version)
        found[version] = traffic(version, is_default=status.default, now=now, before=before)
    return found


def _memory(pids: Sequence[int]) -> dict[int, int]:
    """Return the resident memory of those processes that run on this machine.

    TorchServe's own figure is a minute old.
    """
    import psutil

    found = {}
    for pid in pids:
        # A worker without a process has the pid -1.
        with suppress(psutil.Error, ValueError):
            if pid > 0:
                found[pid] = int(psutil.Process(pid).memory_info().rss)
    return found
