"""A project's running server as a verb found it: read once, and passed down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marsmith import run_state
from marsmith.client.blocking_client import Client
from marsmith.config.server_config import started_with
from marsmith.errors import ServerError
from marsmith.project import Project
from marsmith.run_state import RunState


@dataclass(frozen=True)
class OpenedServer:
    """A running server, with what stays the same while it runs.

    What may change meanwhile is read again when it is needed, such as the files that are left out.

    Attributes:
        project: project of the server.
        state: its addresses, working folder and certificates.
        store: the model store that it was started with.
        client: client of the server; closed at the end of the verb.
    """

    project: Project
    state: RunState
    store: Path
    client: Client


@contextmanager
def open_server(project: Project) -> Iterator[OpenedServer]:
    """Open the running server of a project.

    Raises:
        NotRunningError: the server is not running.
        ServerError: its state or its config cannot be read.
    """
    state = run_state.read(project)
    try:
        store = Path(started_with(project)["model_store"])
    except (OSError, KeyError) as error:
        raise ServerError(
            f"the config that the server of {project.root} was started with cannot be read: {error}",
            tip="marsmith stop, then marsmith serve",
        ) from None
    with Client.of(state) as client:
        yield OpenedServer(project, state, store, client)
