"""Access of a rollout to its server and journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from marsmith.archive import Archive
from marsmith.client.blocking_client import Client, VersionStatus
from marsmith.client.drain import drain
from marsmith.deploy.front import Front, NoFront
from marsmith.deploy.rollout.plan import Situation, Step
from marsmith.errors import (
    DeadlineError,
    NotFoundError,
    RequestRejectedError,
    ServerError,
    UsageError,
)
from marsmith.project import Project
from marsmith.server import state as server_state
from marsmith.server.opened import OpenedServer
from marsmith.server.registration import READY_DEADLINE_S, register_stored
from marsmith.state.journal import Journal, JournalFile, Release
from marsmith.state.served import ArchiveBytes, Version
from marsmith.state.version_bytes import check_release

DRAIN_TIMEOUT_S = 60.0
_POLL_S = 0.1
_CONFLICT = 409


@dataclass(frozen=True)
class Event:
    """Progress of a step.

    Attributes:
        step: the step.
        state: whether the step begins or is done.
        seconds: duration of the step when it is done.
        note: result of the step, if it is worth a word.
    """

    step: Step
    state: Literal["begin", "done"]
    seconds: float = 0.0
    note: str = ""


def ignore_event(_event: Event) -> None:
    """Ignore the event."""


def situation_of(versions: Iterable[VersionStatus]) -> Situation:
    """Return the state of a model with these versions, without its earlier releases."""
    default = None
    workers = {}
    for status in versions:
        workers[status.model_version] = status.min_workers
        default = status.model_version if status.default else default
    return Situation(default, workers)


@dataclass
class ModelServer:
    """One model on a project's running server.

    Attributes:
        server: the server.
        file: the journal of the model; its lock is held.
        on_event: called before and after every step.
        events: steps that are done.
        contents: digests of the archives of the registered versions.
        front: what divides the requests of the model.
    """

    server: OpenedServer
    file: JournalFile
    on_event: Callable[[Event], None] = ignore_event
    events: list[Event] = field(default_factory=list)
    contents: dict[Version, ArchiveBytes] = field(default_factory=dict)
    front: Front = field(default_factory=NoFront)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.file.model

    @property
    def project(self) -> Project:
        """The project of the server."""
        return self.server.project

    @property
    def client(self) -> Client:
        """Client of the server."""
        return self.server.client

    @property
    def store(self) -> Path:
        """The model store of the server."""
        return self.server.store

    def perform(self, step: Step, work: Callable[[], str | None]) -> None:
        """Run one step, and report its progress."""
        self.on_event(Event(step, "begin"))
        started = time.monotonic()
        note = work() or ""
        done = Event(step, "done", time.monotonic() - started, note)
        self.events.append(done)
        self.on_event(done)

    def versions(self) -> dict[str, VersionStatus]:
        """Describe the registered versions; none if the model is not registered."""
        try:
            return {status.model_version: status for status in self.client.describe(self.model)}
        except NotFoundError:
            return {}

    def situation(self, journal: Journal) -> Situation:
        """Read the state of the model on the server."""
        return replace(situation_of(self.versions().values()), releases=journal.releases)

    def describe(self, version: str) -> VersionStatus:
        """Describe one version."""
        return self.client.describe(self.model, version)[0]

    def register(self, release: Release) -> None:
        """Register an archive of the model store, which must have the journalled digest.

        Raises:
            UsageError: the archive does not exist.
            OtherBytesError: the archive has another digest.
            WorkerDiedError: no worker could load it.
            ClientError: the server refused it.
        """
        path = self.store / release.archive
        if not path.exists():
            raise UsageError(f"{path} is gone: {self.model}:{release.version} cannot be registered again")
        content = server_state.content_of(Archive.open(path))
        check_release(self.model, release, path, content.sha256)
        try:
            register_stored(self.server, path, workers=release.workers or None)
        except RequestRejectedError as error:
            # The server continues the registration of a deploy that was killed.
            if error.status != _CONFLICT:
                raise
        self.contents[self.model, release.version] = content

    def make_ready(self, release: Release) -> VersionStatus:
        """Scale a registered version to its workers and wait until all of them are READY.

        Raises:
            ServerError: the workers do not become ready.
        """
        status = self.describe(release.version)
        wanted = release.workers or status.min_workers or 1
        if status.min_workers != wanted:
            self.client.scale(self.model, version=release.version, min_workers=wanted)
        late = time.monotonic() + READY_DEADLINE_S
        while not (status := self.describe(release.version)).is_ready or status.ready_workers < len(status.workers):
            if time.monotonic() > late:
                raise ServerError(
                    f"{status.ready_workers} of {wanted} workers are READY after {READY_DEADLINE_S:g} s",
                    tip=f"their log:{self.project.run / 'logs' / 'model_log.log'}",
                )
            time.sleep(_POLL_S)
        return status

    def drained(self, version: str, timeout_s: float = DRAIN_TIMEOUT_S) -> str | None:
        """Wait until a version has no work; return what is left after the timeout, or None."""
        try:
            drain(self.client, self.model, version, timeout_s=timeout_s)
        except NotFoundError:
            return None
        except DeadlineError as error:
            return error.message
        return None

    def unregister(self, version: str) -> None:
        """Unregister a version, if it is registered."""
        if version in self.versions():
            self.client.unregister(self.model, version)
