"""Detection of restarted workers, and of versions that lack workers for a long time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marsmith.client.management import VersionStatus

# A worker that is restarted or added needs some time to load its model.
PATIENCE_S = 30.0


@dataclass
class WorkerWatch:
    """State of the workers from the looks so far.

    Attributes:
        restarts: number of restarts of workers, by version (``name:version``).
    """

    restarts: dict[str, int] = field(default_factory=dict)
    _pids: dict[tuple[str, str], int] = field(default_factory=dict)
    _short_since: dict[str, float] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def look(self, versions: Iterable[VersionStatus], now: float) -> list[str]:
        """Compare the workers with the previous look, and return the events, one sentence each.

        Args:
            versions: all registered versions.
            now: time on a monotonic clock, in seconds.
        """
        news = []
        for status in versions:
            name = f"{status.model_name}:{status.model_version}"
            news += self._restarted(name, status)
            news += self._shortage(name, status, now)
        return news

    def forget(self) -> None:
        """Forget the workers, because TorchServe itself was restarted; the counts stay."""
        self._pids.clear()
        self._short_since.clear()
        self._told.clear()

    def _restarted(self, name: str, status: VersionStatus) -> list[str]:
        """Find workers with another process than before, which TorchServe has restarted."""
        news = []
        for worker in status.workers:
            before = self._pids.get((name, worker.id))
            # A worker without a process has the pid -1.
            if worker.pid > 0:
                self._pids[name, worker.id] = worker.pid
                if before not in {None, worker.pid}:
                    self.restarts[name] = self.restarts.get(name, 0) + 1
                    news.append(
                        f"worker {worker.id} of {name} died (pid {before}) and was restarted (pid {worker.pid})"
                    )
        return news

    def _shortage(self, name: str, status: VersionStatus, now: float) -> list[str]:
        """Find versions that have lacked workers for long, and those that have all workers again."""
        ready = f"{status.ready_workers} of {status.min_workers} workers ready"
        if status.ready_workers >= status.min_workers:
            self._short_since.pop(name, None)
            if name in self._told:
                self._told.remove(name)
                return [f"{name} has {ready} again"]
            return []
        since = self._short_since.setdefault(name, now)
        if now - since >= PATIENCE_S and name not in self._told:
            self._told.add(name)
            return [f"{name} has had {ready} for {now - since:.0f} s"]
        return []
