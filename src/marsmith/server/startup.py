"""Wait for a server that is starting, until it is ready or has failed.

A version that does not load is left out, and the others are waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain

from marsmith import run_state
from marsmith.archive.store import StoredArchive, StoredExample, first_example
from marsmith.client.blocking_client import Client, VersionStatus
from marsmith.errors import ClientError, FatalArchiveError, FormatError, RequestRejectedError, ServerError
from marsmith.project import Project
from marsmith.run_state import LeftOut, RunState
from marsmith.server.left_out_versions import take_off
from marsmith.server.placeholder import left_out_names
from marsmith.server.processes import exit_of, frontend
from marsmith.server.readiness import StartupStatus, Version, handler_facts, startup_status
from marsmith.server.selection import in_order
from marsmith.server.served import Serving, refused_default, without_version
from marsmith.server.start_logs import StartLogs, worker_died
from marsmith.server.state import registered_versions

_POLL_S = 0.2
# Maximum time limit of one request to the server, in seconds.
_CALL_S = 30.0
_SHORTEST_CALL_S = 1.0
# Exit code of a Java that ended with an exception.
_JAVA_FAILED = 1
# Time limit to unregister versions that were not ready in time, in seconds.
_TAKE_OFF_S = 30.0


@dataclass
class StartingServer:
    """A server that is starting.

    Attributes:
        project: project of the server.
        state: state of the server, including what is left out so far.
        serving: what to serve; a version that does not load is removed.
        on_note: called with information for the user who starts the server.
        strict: whether a version that does not load ends the start.
    """

    project: Project
    state: RunState
    serving: Serving
    on_note: Callable[[str], None] | None = None
    strict: bool = False
    _answered: set[Version] = field(default_factory=set)
    _settled: set[Version] = field(default_factory=set)
    _failed: set[Version] = field(default_factory=set)
    _errors: list[ServerError] = field(default_factory=list)

    @property
    def archives(self) -> Sequence[StoredArchive]:
        """Archives that are still to be served."""
        return self.serving.archives

    def wait(self, timeout_s: float, on_progress: Callable[[StartupStatus], None] | None) -> tuple[VersionStatus, ...]:
        """Return the registered versions when each version is ready or left out because it does not load.

        Raises:
            WorkerDiedError: a worker died, and no version is left to serve.
            ServerError: the server ended, or no version is ready in time or answers its example.
        """
        found = {archive.version: first_example(archive) for archive in self.archives}
        examples = {version: example for version, example in found.items() if example}
        deadline = time.monotonic() + timeout_s
        # One request must not exceed the time limit of the start. The front opens when the server is ready.
        with Client.of(self.state.without_front(), deadline_s=max(_SHORTEST_CALL_S, min(_CALL_S, timeout_s))) as client:
            while True:
                self._check_alive()
                seen = self._look(client, examples)
                if on_progress:
                    on_progress(seen)
                if seen.is_ready:
                    return registered_versions(client)
                if time.monotonic() > deadline:
                    self._leave_out_late(seen, timeout_s)
                    deadline = time.monotonic() + _TAKE_OFF_S
                time.sleep(_POLL_S)

    def _look(self, client: Client, examples: Mapping[Version, StoredExample]) -> StartupStatus:
        described = _described(client)
        if described is None:
            waiting = {archive.version: "the server is starting" for archive in self.archives}
            return StartupStatus((), (), waiting, listening=False)
        self._leave_out_refused(described)
        self._leave_out_dead(described)
        for version in self._outlook(described, examples).to_ask:
            self._ask(client, described[version], examples[version])
        self._check_something_is_served(described)
        unsettled = restore(client, self.serving, described)
        unsettled |= take_off(client, described, self._failed, self.serving.placeholders)
        seen = self._outlook(described, examples, unsettled)
        self._settled.update(seen.ready)
        return seen

    def _outlook(
        self,
        described: Mapping[Version, VersionStatus],
        examples: Mapping[Version, StoredExample],
        unsettled: Mapping[Version, str] | None = None,
    ) -> StartupStatus:
        expected = [archive.version for archive in self.archives]
        return startup_status(expected, described, examples.keys(), self._answered, unsettled)

    def _ask(self, client: Client, status: VersionStatus, example: StoredExample) -> None:
        name, number = version = status.model_name, status.model_version
        try:
            reply = client.predict(name, example.body, version=number, content_type=example.expected.content_type)
            code, body = reply.status, reply.body
        except RequestRejectedError as error:
            code, body = error.status, error.body
        except ClientError:
            # A worker that has just started may have died again: the next look shows it.
            return
        judgement = example.judge(code, body, lambda: handler_facts(client, name, number))
        if judgement.problem:
            file, said = self._file(status), f"gives a wrong answer to its example {example.expected.input}"
            # The worker may have died of the example, and then the death is the reason.
            self._leave_out_dead({version: status})
            said = f"{said}: {judgement.problem}"
            self._leave_out(file, said, ServerError(f"{name}:{number} {said}", tip=self._logs.tip), version)
            return
        if judgement.unproved and self.on_note:
            self.on_note(f"{name}:{number}: its example {example.expected.input} is unproved: {judgement.unproved}")
        self._answered.add(version)

    def _check_alive(self) -> None:
        if frontend(self.state.pid, self.state.created) is None:
            # A Java that was killed or stopped has another exit code; one that fails later was not loading.
            ended = self._logs.ended_while_loading() if exit_of(self.state.pid) == _JAVA_FAILED else None
            if ended:
                named, reason = ended
                raise FatalArchiveError(file_of(named), reason, tip=self._logs.folder_tip)
            text = f"TorchServe ended while it was starting\n{self._logs.printed_by_java()}".rstrip()
            raise ServerError(text, tip=self._logs.folder_tip)

    def _leave_out_refused(self, described: Mapping[Version, VersionStatus]) -> None:
        """Leave out the models that TorchServe refused: it loads everything before it answers the first request.

        Some of them are registered nevertheless, without a worker.
        """
        refused = self._logs.refused()
        for archive in self.archives:
            if archive.version not in described.keys() | self._settled:
                refused.setdefault(archive.path.name, "it is not registered, and the log does not say why")
        for named, reason in refused.items():
            name = file_of(named)
            ours = (archive.version for archive in self.archives if archive.path.name == name)
            others = (version for version, status in described.items() if name in left_out_names(status))
            version = next(chain(ours, others), None)
            said = f"TorchServe refused it: {reason}"
            self._leave_out(name, said, ServerError(f"{name}: {said}", tip=self._logs.folder_tip), version)

    def _leave_out_dead(self, described: Mapping[Version, VersionStatus]) -> None:
        """Leave out the versions with a worker that died before they were ready."""
        known = {"_".join(version): version for version in described}
        while death := self._logs.death(done := {"_".join(version) for version in self._settled | self._failed}):
            if death.model not in known:
                return
            version, death = known[death.model], self._logs.final_death(death, done)
            error = worker_died(death, version, self._logs.folder)
            self._leave_out(self._file(described[version]), f"a worker died: {death.cause}", error, version)

    def _leave_out_late(self, seen: StartupStatus, timeout_s: float) -> None:
        """Leave out the versions that are not ready in time, if there are others.

        Raises:
            ServerError: no version is ready.
        """
        waiting = "\n".join(f"  {name}:{number}: {reason}" for (name, number), reason in seen.waiting.items())
        text, tip = f"not ready after {timeout_s:g} s", "marsmith serve --timeout SECONDS waits longer"
        error = ServerError(f"{text}\n{waiting}", tip=f"{tip}; {self._logs.folder_tip}")
        late = [archive for archive in self.archives if archive.version in seen.waiting]
        if not late or not seen.ready:
            raise error
        for archive in late:
            said = f"{text}: {seen.waiting[archive.version]}"
            self._leave_out(archive.path.name, said, error, archive.version, tip=tip)

    def _leave_out(
        self, file: str, reason: str, error: ServerError, version: Version | None, *, tip: str | None = None
    ) -> None:
        """Leave this version out, report it, and record it for ``status``.

        Raises:
            ServerError: the start is strict.
        """
        if file in {each.file for each in self.state.left_out}:
            return
        if self.strict:
            raise error
        left_out = LeftOut(file, "; ".join(reason.splitlines()), tip or error.tip or "")
        self._errors.append(error)
        notes = [str(left_out)]
        if version is not None:
            self._failed.add(version)
            self.serving = without_version(self.serving, version)
            notes += [refused_default(version)] if version in self.serving.placeholders else []
        self.state = replace(self.state, left_out=in_order((*self.state.left_out, left_out)))
        run_state.write(self.project, self.state)
        for note in notes:
            if self.on_note:
                self.on_note(note)

    def _check_something_is_served(self, described: Mapping[Version, VersionStatus]) -> None:
        """Raise the reasons if no version is left."""
        others = described.keys() - self._failed - set(self.serving.placeholders)
        if not self._errors or self.archives or others:
            return
        if len(self._errors) == 1:
            raise self._errors[0]
        lines = "\n".join(error.message for error in self._errors)
        raise ServerError(f"nothing is left to serve\n{lines}", tip=self._logs.folder_tip)

    def _file(self, status: VersionStatus) -> str:
        """Return the name of a version's archive when it is left out."""
        version = (status.model_name, status.model_version)
        return next((archive.path.name for archive in self.archives if archive.version == version), status.archive_url)

    @property
    def _logs(self) -> StartLogs:
        return StartLogs(self.project.run / "logs")


def restore(client: Client, serving: Serving, described: Mapping[Version, VersionStatus]) -> dict[Version, str]:
    """Restore the changes at run time that a start does not include. Return descriptions of those that are pending.

    Workers are added at once. They are removed only when all are ready, because a worker that ends during its load
    looks like one that died.
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


def file_of(named: str) -> str:
    """Return the file in the store, or the URL, that TorchServe means by this name."""
    return named if "://" in named else named.rpartition("/")[2]


def _described(client: Client) -> dict[Version, VersionStatus] | None:
    """Describe all registered versions; None while the server does not answer."""
    try:
        return {(status.model_name, status.model_version): status for status in registered_versions(client)}
    except (ClientError, FormatError):
        # A key file that is being written is empty for a moment, on a busy machine for longer.
        return None
