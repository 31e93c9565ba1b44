"""A canary with a front and a server in memory, and a clock that moves only by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from marsmith.client.blocking_client import Client
from marsmith.client.management import VersionStatus
from marsmith.deploy.front import Answer, Copies, CopyCounts, Share
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.canary import Canary
from marsmith.deploy.traffic.driver import CanaryDriver
from marsmith.deploy.traffic.eavesdrop import LogEavesdropper
from marsmith.deploy.traffic.shadow import Shadow
from marsmith.deploy.traffic.state import Level, RolloutFile, RolloutState
from marsmith.errors import NotFoundError, ServerError
from marsmith.predictions.files import log_file
from marsmith.project import Project
from marsmith.run_state import RunState
from marsmith.server.opened import OpenedServer
from marsmith.state.journal import Change, Journal, JournalFile, Release
from support.states import status

CANARY = Canary(steps=(5, 50), interval_s=8, min_requests=10, max_wait_s=80, sticky="header:x-user-id")
OLD, NEW = Release("1.0", "echo-1.0.mar", None, 1), Release("2.0", "echo-2.0.mar", None, 1)
CHANGE = Change(
    "deploy",
    NEW,
    OLD,
    registered_before=False,
    workers_before=0,
    stored=False,
    keep=2,
    step="probe",
    workers={"1.0": 1},
)


def opened(project: Project, client: object) -> OpenedServer:
    """Return a server that nobody calls but by ``client``."""
    state = RunState(1, 2.0, "http://i", "http://m", "http://x", "g:1", "g:2", project.run, tokens=False, ready=True)
    return OpenedServer(project, state, project.model_store, cast("Client", client))


class KilledError(BaseException):
    """SIGKILL, as far as files are concerned."""


@dataclass(frozen=True)
class Logged:
    """A logged request: of a canary with two attempts the first one failed."""

    version: str = ""
    user: str = ""
    status: int = 200
    attempts: int = 1
    duration_ms: float = 10.0
    model: str = "echo"
    at_s: float = 2000.0
    request_id: str = ""

    @property
    def was_answered(self) -> bool:
        return self.status != 0

    @property
    def reply_failed(self) -> bool:
        return self.status >= 500

    @property
    def was_refused(self) -> bool:
        return 400 <= self.status < 500

    @property
    def failed_on_canary_alone(self) -> bool:
        return bool(self.version) and self.reply_failed != (self.attempts > 1)


@dataclass
class Memory:
    """A front and a server with two versions. ``after`` is called after each change, with its name."""

    after: Callable[[str], None] = lambda what: None
    shares: dict[str, Share] = field(default_factory=dict)
    copies: dict[str, Copies] = field(default_factory=dict)
    canary_copies: dict[str, Copies] = field(default_factory=dict)
    counts: CopyCounts = field(default_factory=CopyCounts)
    log: list[Answer] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=lambda: {"1.0": 1, "2.0": 1})
    default: str = "1.0"
    missing: str | None = None
    history: list[str] = field(default_factory=list)
    refuses: bool = False

    def done(self, what: str) -> None:
        self.history.append(what)
        self.after(what)

    def set_share(self, model: str, share: Share | None) -> None:
        if self.refuses:
            raise ServerError("Envoy does not answer")
        if share is None:
            self.shares.pop(model, None)
        else:
            self.shares[model] = share
        self.done(f"share {share.share}" if share else "plain")

    def share_of(self, model: str) -> Share | None:
        return self.shares.get(model)

    def set_copies(self, model: str, copies: Copies | None, *, of_canary: bool = False) -> None:
        if self.refuses:
            raise ServerError("Envoy does not answer")
        in_force = self.canary_copies if of_canary else self.copies
        if copies is None:
            in_force.pop(model, None)
        else:
            in_force[model] = copies
        self.done(f"copy {copies.part}" if copies else "copy none")

    def copies_of(self, model: str, *, of_canary: bool = False) -> Copies | None:
        return (self.canary_copies if of_canary else self.copies).get(model)

    def copy_counts(self, model: str, *, of_canary: bool = False) -> CopyCounts:
        return self.counts if self.copies_of(model, of_canary=of_canary) else CopyCounts()

    def end_of_log(self) -> int:
        return len(self.log)

    def answers(self, position: int) -> tuple[Sequence[Answer], int]:
        return self.log[position:], len(self.log)

    def describe(self, model: str, version: str | None = None, **_: Any) -> list[VersionStatus]:
        names = [version] if version else list(self.versions)
        if any(name not in self.versions for name in names):
            raise NotFoundError("no such version")
        return [status(name, default=name == self.default, workers=self.versions[name]) for name in names]

    def set_default(self, model: str, version: str) -> None:
        self.default = version
        self.done(f"default {version}")

    def unregister(self, model: str, version: str) -> None:
        self.versions.pop(version, None)
        self.done(f"unregister {version}")

    def scale(self, model: str, *, version: str, min_workers: int) -> None:
        self.versions[version] = min_workers
        self.done(f"scale {version}")

    def probe(self, model: str, version: str, **_: Any) -> int:
        if version in {share.version for share in self.shares.values() if share.share}:
            raise AssertionError(f"{version} is drained while it gets requests")
        if version in {copies.version for copies in self.copies.values()}:
            raise AssertionError(f"{version} is drained while it gets copies")
        return 100


class Calm:
    """A lookout that says what it is told."""

    def __init__(self) -> None:
        self.news: str | None = None

    def begin(self, change: Change) -> None:
        pass

    def look(self) -> str | None:
        return self.news


@dataclass
class Scene:
    """A canary that was handed over, and a clock that moves only by hand."""

    project: Project
    memory: Memory = field(default_factory=Memory)
    clock: float = 1000.0
    told: list[str] = field(default_factory=list)
    lookout: Calm = field(default_factory=Calm)
    random: random.Random = field(default_factory=lambda: random.Random(1))
    number: int = 0
    _driver: CanaryDriver | None = None

    def begin(self, canary: Canary = CANARY, p99_ms: float | None = None) -> Scene:
        JournalFile.of(self.project, "echo").write(Journal("echo", (OLD,), CHANGE))
        self.file.write(RolloutState("echo", "2.0", "1.0", canary, Level(p99_ms, 5.0), began_s=self.clock))
        return self

    def shadow(self, shadow: Shadow) -> Scene:
        """Let the rollout begin as a shadow."""
        self.file.write(replace(self.state, phase="shadowing", shadow=shadow, canary=shadow.then or CANARY))
        return self

    def copied(
        self, count: int, reply: Callable[[int], dict[str, Any] | None] = lambda number: {}, copy: str = "2.0"
    ) -> None:
        """Log requests that were copied, with how the new version's line differs; None: it never answered.

        Args:
            count: number of requests.
            reply: how a line differs, by the number of the request.
            copy: version that got the copies.
        """
        lines = []
        for _ in range(count):
            self.number += 1
            key = {"key": f"r{self.number}", "input_sha256": f"{self.number:064x}", "time": self.clock, "model": "echo"}
            rest = {"schema": 2, "status": 200, "handler_ms": 5.0, "worker": 7}
            lines.append({**key, **rest, "version": "1.0", "shadow": copy == "1.0", "reply": {"cat": 0.9}})
            mine = reply(self.number)
            if mine is not None:
                lines.append({**key, **rest, "version": "2.0", "shadow": copy == "2.0", "reply": {"cat": 0.9}, **mine})
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self.memory.counts = replace(self.memory.counts, sent=self.memory.counts.sent + count)

    @property
    def log(self) -> Path:
        return log_file(self.project, "echo")

    @property
    def file(self) -> RolloutFile:
        return RolloutFile.of(self.project, "echo")

    @property
    def state(self) -> RolloutState:
        state = self.file.read()
        assert state
        return state

    @property
    def journal(self) -> Journal:
        return JournalFile.of(self.project, "echo").read()

    def driver(self) -> CanaryDriver:
        """Return the driver; after a kill a new one that begins with the files."""
        if self._driver is None:
            journal = JournalFile.of(self.project, "echo")
            site = ModelServer(opened(self.project, self.memory), journal, front=self.memory)
            self._driver = CanaryDriver(
                site,
                self.file,
                self.told.append,
                self.lookout,
                lambda: self.clock,
                lambda site, subject, tell: LogEavesdropper(subject, [self.log]),
            )
            self._driver.begin()
        return self._driver

    def look(self, seconds: float = 1.0) -> None:
        self.clock += seconds
        if not self.state.is_over:
            self.driver().look()

    def killed(self) -> None:
        self._driver = None

    def requests(self, count: int, fails: Callable[[str], bool] = lambda version: False, **other: Any) -> None:
        """Log answers to users who are divided by the share that is in force, shielded."""
        share = self.memory.shares.get("echo")
        for _ in range(count):
            version = "2.0" if share and self.random.random() < share.share / 10_000 else ""
            failed = fails(version)
            lost = failed and fails("")
            status_, attempts = 500 if lost else 200, 2 if failed and version else 1
            told = Logged(version, status=status_, attempts=attempts, at_s=self.clock, **other)
            self.memory.log.append(told)

    def until_over(self, fails: Callable[[str], bool] = lambda version: False, per_second: int = 50) -> None:
        for _ in range(2000):
            if self.state.is_over:
                return
            self.requests(per_second, fails)
            self.look()
        raise AssertionError("the rollout did not end")
