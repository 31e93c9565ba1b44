"""Values that the supervisor knows already from its last look at TorchServe: no request is made for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

from marsmith import metric_names as names
from marsmith.client.version_status import READY
from marsmith.monitoring.exporter.samples import Sample
from marsmith.server.outlook import Look, Outlook

if TYPE_CHECKING:
    from marsmith.client.version_status import VersionStatus


@dataclass(frozen=True)
class SupervisorSource:
    """Values of the server as a whole, and of each version.

    Attributes:
        outlook: what the supervisor sees.
        unready: returns why the server is not ready; None if it is.
    """

    outlook: Outlook
    unready: Callable[[], str | None]

    def collect(self) -> Iterable[Sample]:
        """Return the values of the last look."""
        look = self.outlook.look
        samples = [
            Sample(names.UP, (), float(look.answers)),
            Sample(names.READY, (), float(self.unready() is None)),
            Sample(names.LAST_LOOK, (), look.seen_s),
            Sample(names.BUILD_INFO, (version_of("marsmith"),), 1.0),
            Sample(names.SERVER_RESTARTS, (), look.server_restarts),
        ]
        for status in look.versions:
            samples += _of_version(status, look)
        return samples


def _of_version(status: VersionStatus, look: Look) -> Iterator[Sample]:
    version = (status.model_name, status.model_version)
    if status.default:
        yield Sample(names.DEFAULT_VERSION, version, 1.0)
    counts = Counter("ready" if worker.status == READY else "unready" for worker in status.workers)
    for each in ("ready", "unready"):
        yield Sample(names.WORKERS, (*version, each), counts[each])
    yield Sample(names.MIN_WORKERS, version, status.min_workers)
    yield Sample(names.WORKER_RESTARTS, version, look.worker_restarts.get(":".join(version), 0))
    yield Sample(names.QUEUE_PENDING, version, status.queue_pending)
    yield Sample(names.QUEUE_CAPACITY, version, status.queue_pending + status.queue_remaining)
    yield Sample(names.MAX_BATCH, version, status.batch_size)
