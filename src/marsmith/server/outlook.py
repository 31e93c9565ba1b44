"""What a supervisor knows of its server, for the duties that tell others: the last look, and counts of restarts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marsmith.client.version_status import VersionStatus


@dataclass(frozen=True)
class Look:
    """What a supervisor knows at a moment.

    Attributes:
        answers: whether TorchServe answered when it was asked last.
        versions: the registered versions when it answered last.
        seen_s: when that was, in seconds since the epoch; 0: never.
        server_restarts: restarts of TorchServe by this supervisor.
        worker_restarts: restarts of workers by TorchServe, by version (``name:version``).
        front_restarts: restarts of the front by this supervisor.
    """

    answers: bool = False
    versions: tuple[VersionStatus, ...] = ()
    seen_s: float = 0.0
    server_restarts: int = 0
    worker_restarts: Mapping[str, int] = field(default_factory=dict)
    front_restarts: int = 0


@dataclass
class Outlook:
    """Holds the last look of a supervisor, which alone writes it; other threads read it.

    Attributes:
        look: the last look.
        listener: base URL of the exporter, which alone writes it; empty if it does not listen.
    """

    look: Look = field(default_factory=Look)
    listener: str = ""

    def saw(self, versions: Sequence[VersionStatus], worker_restarts: Mapping[str, int], front_restarts: int) -> None:
        """Note an answer of TorchServe."""
        self.look = replace(
            self.look,
            answers=True,
            versions=tuple(versions),
            seen_s=time.time(),
            worker_restarts=dict(worker_restarts),
            front_restarts=front_restarts,
        )

    def missed(self) -> None:
        """Note that TorchServe does not answer; what was seen last stays."""
        self.look = replace(self.look, answers=False)

    def restarted(self) -> None:
        """Note that TorchServe was restarted."""
        self.look = replace(self.look, server_restarts=self.look.server_restarts + 1)
