"""Wait for a server that has just been started: until it is ready, or until it is clear that it will not be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from marsmith.client import Client, VersionStatus
from marsmith.errors import ClientError, FormatError, NotFoundError, RequestRejectedError, ServerError, WorkerDiedError
from marsmith.handler_traceback import summary
from marsmith.model_store import StoredArchive, StoredExample, first_example
from marsmith.readiness import Outlook, Version, handler_facts, outlook
from marsmith.run_state import RunState
from marsmith.served_versions import Serving
from marsmith.server_log import WorkerDeath, first_death, parse_log
from marsmith.server_process import frontend
from marsmith.server_state import registered_versions
from marsmith.settings import Project

CONSOLE_LOG = "console.log"

_POLL_S = 0.2
# How long one question to the server may take, in seconds, where all of it may take long enough.
_CALL_S = 30.0
_SHORTEST_CALL_S = 1.0
# Enough for a busy machine, and short for somebody who waits for the reason.
_EQUAL_LOOKS = 5
_LAST_WORDS_TIMEOUT_S = 20.0
_TAIL_LINES = 15


@dataclass
class StartingServer:
    """A server that has been started and is not ready yet."""

    project: Project
    state: RunState
    serving: Serving
    on_note: Callable[[str], None] | None = None
    _answered: set[Version] = field(default_factory=set)

    @property
    def archives(self) -> Sequence[StoredArchive]:
        """What it has been told to load."""
        return self.serving.archives

    def wait(self, timeout_s: float, on_progress: Callable[[Outlook], None] | None) -> tuple[VersionStatus, ...]:
        """Return what is registered when every version is ready.

        Raises:
            WorkerDiedError: a worker died.
            ServerError: the server ended, an example is answered wrongly, or the time is over.
        """
        found = {archive.version: first_example(archive) for archive in self.archives}
        examples = {version: example for version, example in found.items() if example}
        deadline = time.monotonic() + timeout_s
        # One question must not take longer than all of it may.
        with Client.for_project(self.project, deadline_s=max(_SHORTEST_CALL_S, min(_CALL_S, timeout_s))) as client:
            while True:
                self._check_alive()
                seen = self._look(client, examples)
                if on_progress:
                    on_progress(seen)
                if seen.is_ready:
                    return registered_versions(client)
                if time.monotonic() > deadline:
                    raise self._too_late(seen, timeout_s)
                time.sleep(_POLL_S)

    def _look(self, client: Client, examples: Mapping[Version, StoredExample]) -> Outlook:
        expected = [archive.version for archive in self.archives]
        described = _described(client, {name for name, _ in expected})
        if described is None:
            return Outlook((), (), dict.fromkeys(expected, "the server is starting"), listening=False)
        unsettled = restore(client, self.serving, described)
        seen = outlook(expected, described, examples.keys(), self._answered)
        for version in seen.to_ask:
            self._ask(client, version, examples[version])
        return outlook(expected, described, examples.keys(), self._answered, unsettled)

    def _ask(self, client: Client, version: Version, example: StoredExample) -> None:
        name, number = version
        try:
            reply = client.predict(name, example.body, version=number, content_type=example.expected.content_type)
            status, body = reply.status, reply.body
        except RequestRejectedError as error:
            status, body = error.status, error.body
        except ClientError:
            # A worker that has just come up can be gone again: the next look tells.
            return
        judgement = example.judge(status, body, lambda: handler_facts(client, name, number))
        if judgement.problem:
            self._check_alive()
            raise ServerError(
                f"{name}:{number} answers its example {example.expected.input} wrongly: {judgement.problem}",
                tip=f"what the worker printed: {self.project.run / 'logs' / 'model_log.log'}",
            )
        if judgement.unproved and self.on_note:
            self.on_note(f"{name}:{number}: its example {example.expected.input} is unproved: {judgement.unproved}")
        self._answered.add(version)

    def _check_alive(self) -> None:
        death = self._death()
        if death:
            raise worker_died(self._last_words(death), self.archives, self.project.run / "logs")
        if frontend(self.state.pid, self.state.created) is None:
            printed = "\n".join(_text(self.project.run / "logs" / CONSOLE_LOG).splitlines()[-_TAIL_LINES:])
            raise ServerError(
                f"TorchServe ended while it was starting\n{printed}".rstrip(), tip=_logs_tip(self.project)
            )

    def _last_words(self, death: WorkerDeath) -> WorkerDeath:
        """Look again until nothing is added, and without a whole traceback until the worker has died once more.

        The frontend may still be reading what the worker printed, and what it does not read in time is lost; but it
        starts the worker again after a second.
        """
        equal_looks = 0
        deadline = time.monotonic() + _LAST_WORDS_TIMEOUT_S
        while time.monotonic() < deadline and not (
            death.traceback and not death.is_cut_off and equal_looks >= _EQUAL_LOOKS
        ):
            time.sleep(_POLL_S)
            again = self._death() or death
            equal_looks = equal_looks + 1 if again == death else 0
            death = again
        return death

    def _death(self) -> WorkerDeath | None:
        logs = self.project.run / "logs"
        return first_death(parse_log(_text(logs / "model_log.log")), parse_log(_text(logs / "ts_log.log")))

    def _too_late(self, seen: Outlook, timeout_s: float) -> ServerError:
        waiting = "\n".join(f"  {name}:{number}: {reason}" for (name, number), reason in seen.waiting.items())
        return ServerError(
            f"not ready after {timeout_s:g} s\n{waiting}",
            tip=f"marsmith serve --timeout SECONDS waits longer; {_logs_tip(self.project)}",
        )


def restore(client: Client, serving: Serving, described: Mapping[Version, VersionStatus]) -> dict[Version, str]:
    """Bring back what a start alone does not: return what is still missing to it, in words.

    Workers are added at once, and taken away only when all are there, because one that ends while it loads looks like
    one that died.
    """
    unsettled = {}
    for version, (least, most) in serving.workers.items():
        status = described.get(version)
        if status is not None and (status.min_workers, status.max_workers) != (least, most):
            unsettled[version] = f"gets {least} workers, as before"
            if least >= len(status.workers) or status.is_ready:
                with suppress(ClientError):
                    client.scale(version[0], version=version[1], min_workers=least, max_workers=most, synchronous=False)
    for name, number in serving.defaults.items():
        status = described.get((name, number))
        if status is not None and not status.default:
            unsettled[name, number] = "becomes the default version, as before"
            with suppress(ClientError):
                client.set_default(name, number)
    return unsettled


def worker_died(death: WorkerDeath, archives: Iterable[StoredArchive], logs: Path) -> WorkerDiedError:
    """Say which version's worker died, and of what."""
    names = {"_".join(archive.version): ":".join(archive.version) for archive in archives}
    who = names.get(death.model, death.model)
    if death.traceback:
        cause = summary(death.traceback)
    else:
        cause = "it printed no traceback; its last lines:\n" + "\n".join(f"  {line}" for line in death.last_lines)
    tip = f"what it printed: {logs / 'model_log.log'}"
    if cause.startswith("ModuleNotFoundError"):
        tip = f"install the module where the server runs, or add its file to the archive; {tip}"
    return WorkerDiedError(f"a worker of {who} died: {cause}", traceback=death.traceback, tip=tip)


def _described(client: Client, names: Iterable[str]) -> dict[Version, VersionStatus] | None:
    """Describe every version of the models; None while the server does not answer."""
    found = {}
    try:
        # Asked also where no archive is expected, to see that the server answers at all.
        client.models()
        for name in names:
            found.update(_versions(client, name))
    except (ClientError, FormatError):
        # A key file that is being written is empty for a moment, on a busy machine for longer.
        return None
    return found


def _versions(client: Client, name: str) -> dict[Version, VersionStatus]:
    try:
        return {(status.model_name, status.model_version): status for status in client.describe(name)}
    except NotFoundError:
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _logs_tip(project: Project) -> str:
    return f"the logs are in {project.run / 'logs'}"
