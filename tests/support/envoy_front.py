"""A real front before any TorchServe, or before a light server in its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marsmith import child_processes
from marsmith.config.server_config import started_with
from marsmith.project import Project
from marsmith.run_state import Backend, RunState
from marsmith.server.front.access_log import Answer, read_answers
from marsmith.server.front.bootstrap import ANSWERS_FILE
from marsmith.server.front.door import Front
from marsmith.server.front.files import apply_traffic
from marsmith.server.front.traffic import Canary, Shadow, Traffic
from support.live_server import free_addresses, until


@dataclass
class Place:
    """A front with its public addresses.

    Attributes:
        front: the front.
        config: server config with the public addresses.
        state: the server behind it.
        told: up to where the log of answers was read.
        changed_s: when the traffic was changed, in seconds since the epoch.
    """

    front: Front
    config: dict[str, str]
    state: RunState
    told: int = 0
    changed_s: float = 0.0

    @property
    def url(self) -> str:
        return self.config["inference_address"]

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.config['grpc_inference_port']}"

    @property
    def pid(self) -> int:
        running = self.front.process
        assert running is not None
        return running.pid

    def start(self) -> None:
        self.front.prepare(self.config)
        self.front.open(self.config, self.state, child_processes.start)

    def change(self, *parts: Canary | Shadow) -> None:
        """Let the front do this and nothing else."""
        canaries = tuple(each for each in parts if isinstance(each, Canary))
        shadows = tuple(each for each in parts if isinstance(each, Shadow))
        apply_traffic(self.front.folder, Traffic(canaries, shadows))
        self.changed_s = time.time()

    def answers(self, count: int) -> list[Answer]:
        """Wait until so many answers to later requests are in the log, and return them."""
        found: list[Answer] = []

        def enough() -> bool:
            more, self.told = read_answers(self.front.folder / ANSWERS_FILE, self.told)
            found.extend(each for each in more if each.at_s >= self.changed_s)
            return len(found) >= count

        until(enough, 30)
        return found


@contextmanager
def front_before(folder: Path, backend: Backend) -> Iterator[Place]:
    """Run a front in ``folder`` before these private addresses, which require no tokens."""
    folder.mkdir(parents=True)
    public = free_addresses()
    state = RunState(1, 0.0, public["inference_address"], "", "", "", "", folder, tokens=False, backend=backend)
    place = Place(Front(folder / "front"), public, state)
    place.start()
    try:
        yield place
    finally:
        place.front.close(0.0)


def front_of(project: Project, state: RunState) -> Place:
    """Return the front of a running server."""
    return Place(Front.of(project), started_with(project), state)
