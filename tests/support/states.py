"""States of a server, as the next start remembers them."""

from __future__ import annotations

from collections.abc import Mapping

from marsmith.client.management import VersionStatus, Worker
from marsmith.state.served import (
    Parameters,
    ServedModel,
    ServedVersion,
    ServerState,
    Unregistered,
)

ONE = Parameters(1, 1, 1, 1, 20, 60)


def status(version: str, *, default: bool = False, workers: int = 1, ready: bool = True) -> VersionStatus:
    state = "READY" if ready else "UNLOADING"
    running = tuple(Worker(str(9000 + i), 100 + i, state, False, 0, "") for i in range(workers))
    return VersionStatus(
        "echo", version, default, f"echo-{version}.mar", workers, workers, 1, 1, 20, 60, running, 100, 0
    )


def state_of(default: str, versions: Mapping[str, Parameters], **unregistered: str) -> ServerState:
    served = {version: ServedVersion(f"echo-{version}.mar", ran, ONE) for version, ran in versions.items()}
    return ServerState(
        {"echo": ServedModel(default, served)}, {("echo", v): Unregistered(file) for v, file in unregistered.items()}
    )
