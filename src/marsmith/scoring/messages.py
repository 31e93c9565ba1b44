"""Messages between a batch and its workers: JSON over a pipe of the operating system."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from marsmith import state_files
from marsmith.scoring.plan import Plan


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker gets when it starts.

    Attributes:
        folder: the archive's members.
        plan: the plan.
        keys: file of keys.
        root: folder of relative paths, because a handler runs in its own folder, as in a server.
        to: path or URL of the destination.
        temporary: folder for temporary files, if the destination is a folder.
        quarantine: path or URL for copies of bad inputs; None: no copies.
        quarantine_temporary: as ``temporary``.
        gpu_id: number of the GPU; None for the CPU.
    """

    folder: str
    plan: Plan
    keys: str
    root: str
    to: str
    temporary: str | None
    quarantine: str | None
    quarantine_temporary: str | None
    gpu_id: int | None

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @classmethod
    def parse(cls, data: Any) -> WorkerSetup:
        """Build it from parsed JSON."""
        return state_files.validate(cls, data, "the setup of a worker")


class Channel:
    """One end of a pipe."""

    def __init__(self, connection: Connection) -> None:
        """Use an open connection."""
        self.connection = connection

    def send(self, **message: Any) -> None:
        """Send a message.

        Raises:
            OSError: the other end is closed.
        """
        self.connection.send_bytes(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """Return the next message.

        Raises:
            EOFError: the other end is closed.
        """
        message: dict[str, Any] = json.loads(self.connection.recv_bytes())
        return message
