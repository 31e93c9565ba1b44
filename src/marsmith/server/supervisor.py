"""Supervisor of a running server: save what it serves, restart it when it dies, and end when it is stopped.

The delay before a restart grows with each failure, and the number of failures in a row is limited.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from marsmith import child_processes, run_state
from marsmith.child_processes import StopRequestedError
from marsmith.client.blocking_client import Client
from marsmith.errors import MarsmithError, NotRunningError, ServerError, UsageError
from marsmith.project import PROJECT_VARIABLE, Project
from marsmith.run_state import RunState
from marsmith.server import lifecycle, supervisor_state
from marsmith.server import processes as server_process
from marsmith.server import state as server_state
from marsmith.server.duty import Duty, DutyThread, performing
from marsmith.server.front.door import Front
from marsmith.server.front.duty import FrontDuty
from marsmith.server.launch import ADOPT_FLAG, SUPERVISED_VARIABLE
from marsmith.server.lifecycle import StartOptions
from marsmith.server.outlook import Outlook
from marsmith.server.supervisor_state import SupervisorState
from marsmith.server.systemd import ServiceManager
from marsmith.server.worker_watch import WorkerWatch

if TYPE_CHECKING:
    from marsmith.client.management import VersionStatus
    from marsmith.server.readiness import StartupStatus


# A server that ran for this long has not failed rapidly, so the count starts again.
STABLE_S = 60.0
DEFAULT_LIMIT = 5

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class RestartPolicy:
    """Policy for restarts.

    Attributes:
        limit: maximum number of failures in a row, each less than a minute after the last start. None: unlimited; 0: no
            restart.
    """

    limit: int | None = DEFAULT_LIMIT

    def delay_s(self, failures: int) -> float | None:
        """Return the delay after so many failures in a row, in seconds; None: give up."""
        if self.limit is not None and failures > self.limit:
            return None
        return float(min(_FIRST_DELAY_S * 2 ** min(failures - 1, 10), _LONGEST_DELAY_S))


def parse_restart(text: str) -> RestartPolicy:
    """Parse ``N``, ``always`` or ``no``.

    Raises:
        UsageError: the text is none of them.
    """
    if text == "always":
        return RestartPolicy(None)
    if text == "no":
        return RestartPolicy(0)
    if text.isascii() and text.isdigit() and len(text) < 7:
        return RestartPolicy(int(text))
    raise UsageError(f"--restart {text!r} is neither a number nor 'always' nor 'no'")


def render_restart(policy: RestartPolicy) -> str:
    """Return the text that ``parse_restart`` parses."""
    return "always" if policy.limit is None else str(policy.limit)


LOG = "supervisor.log"
# Intervals of the check of the process, and of the look at the registered versions, in seconds.
LOOK_S = 0.25
ASK_S = 2.0
# On a machine with GPUs the frontend calls nvidia-smi for each worker: a look may use a twentieth of the time.
_ASK_SHARE = 20
_DEADLINE_S = 10.0


@dataclass
class Supervisor:
    """The process that watches a server.

    Attributes:
        project: project of the server.
        policy: policy for restarts.
        options: options of a restart.
        manager: the service manager that gets status messages.
        tell: called with each event, as one sentence.
        duties: other work that goes on while this process watches.
        outlook: what this process sees, for duties that tell others.
    """

    project: Project
    policy: RestartPolicy
    options: StartOptions
    manager: ServiceManager
    tell: Callable[[str], None]
    duties: Sequence[Duty] = ()
    outlook: Outlook = field(default_factory=Outlook)
    _known: SupervisorState = field(default_factory=supervisor_state.of_this_process)
    _workers: WorkerWatch = field(default_factory=WorkerWatch)
    _next_ask: float = 0.0
    _client: Client | None = None
    _told: set[str] = field(default_factory=set)
    _threads: Sequence[DutyThread] = ()
    _front: FrontDuty | None = None

    def run(self, state: RunState) -> None:
        """Watch until the server has been stopped on purpose, and perform the duties meanwhile.

        Raises:
            ServerError: the server died, and the policy allows no further restart, or the restart failed.
        """
        front = Front.of(self.project)
        if front.is_prepared:
            self._front = FrontDuty(front, lifecycle.starter(self.options), self.tell)
        own = [self._front] if self._front else []
        with performing([*own, *self.duties], self.tell) as self._threads:
            self._run(state)

    def _run(self, state: RunState) -> None:
        self._note(doing="watching", listener=self.outlook.listener)
        failures = 0
        while True:
            began = time.monotonic()
            end = self._watch(state)
            if end is None:
                return
            self.outlook.missed()
            failures = 1 if time.monotonic() - began >= STABLE_S else failures + 1
            lifecycle.hold_requests(self.project)
            self._note(last_end=end)
            state, failures = self._bring_back(end, failures)

    def _watch(self, state: RunState) -> str | None:
        """Return how TorchServe ended by itself; None if it was stopped on purpose."""
        self._workers.forget()
        while lifecycle.is_alive(state):
            self._live(state)
            time.sleep(LOOK_S)
        if lifecycle.stop_was_asked(self.project):
            return None
        return f"TorchServe ended by itself{_how(server_process.exit_of(state.pid))}"

    def _live(self, state: RunState) -> None:
        """Do the periodic work while the server runs."""
        server_process.reap_orphans()
        self.manager.alive()
        for thread in self._threads:
            thread.report_overdue()
        if self.outlook.listener != self._known.listener:
            self._note(listener=self.outlook.listener)
        if time.monotonic() >= self._next_ask:
            began = time.monotonic()
            versions = self._look(state)
            if versions is None:
                self.outlook.missed()
            else:
                self._see_workers(versions)
            now = time.monotonic()
            self._next_ask = now + max(ASK_S, _ASK_SHARE * (now - began))

    def _look(self, state: RunState) -> Sequence[VersionStatus] | None:
        """Return the registered versions, and save them; None if they cannot be read now.

        Damaged archives, files of the run or replies do not end the watch.
        """
        try:
            self._fix_state(state)
            if self._client is None:
                self._client = Client.of(state, deadline_s=_DEADLINE_S)
            return server_state.look(self.project, self._client)
        except MarsmithError:
            return None
        except Exception as error:
            self._report_once(f"cannot see what is served: {error!r}")
            return None

    def _fix_state(self, state: RunState) -> None:
        """Write the state of the watched server again if its file was damaged."""
        try:
            run_state.read(self.project)
        except NotRunningError:
            return
        except ServerError as error:
            if lifecycle.stop_was_asked(self.project):
                return
            self._report_once(f"{error.message}; it is written again")
            run_state.write(self.project, state)

    def _report_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.tell(text)

    def _see_workers(self, versions: Sequence[VersionStatus]) -> None:
        """Report changes of the workers; TorchServe itself restarts them."""
        for news in self._workers.look(versions, time.monotonic()):
            self.tell(news)
        if dict(self._known.worker_restarts) != self._workers.restarts:
            self._note(worker_restarts=dict(self._workers.restarts))
        self.outlook.saw(versions, self._workers.restarts, self._front.restarts if self._front else 0)

    def _bring_back(self, end: str, failures: int) -> tuple[RunState, int]:
        """Restart the server, repeatedly if necessary. Return its state and the number of failures so far."""
        while True:
            delay = self.policy.delay_s(failures)
            if delay is None:
                lifecycle.clear_away(self.project)
                after = f" ({failures} times in a row)" if failures > 1 else ""
                raise ServerError(f"{end}{after}", tip=f"the logs are in {self.project.run / 'logs'}")
            self._wait(end, delay)
            if lifecycle.stop_was_asked(self.project):
                raise StopRequestedError(signal.SIGTERM)
            self._forget_client()
            try:
                state = lifecycle.restart(self.project, self._reporting(self.options))
            except Exception as error:
                if lifecycle.stop_was_asked(self.project):
                    raise
                why = error.message if isinstance(error, MarsmithError) else repr(error)
                end, failures = f"TorchServe did not restart: {why}", failures + 1
                self._note(last_end=end)
                continue
            self._note(doing="watching", restarts=self._known.restarts + 1)
            self.outlook.restarted()
            self.tell(f"TorchServe runs again (pid {state.pid})")
            self.manager.ready("serving")
            return state, failures

    def _forget_client(self) -> None:
        """The next server may have other addresses."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _wait(self, end: str, delay: float) -> None:
        self.tell(f"{end}; restart in {delay:g} s")
        self._note(doing=f"restarting TorchServe in {delay:g} s")
        self.manager.status(f"{end}; restarting")
        late = time.monotonic() + delay
        while time.monotonic() < late:
            self.manager.alive()
            server_process.reap_orphans()
            time.sleep(min(LOOK_S, delay))
        self._note(doing="restarting TorchServe")

    def _reporting(self, options: StartOptions) -> StartOptions:
        """Send signs of life to the service manager while the server starts."""

        def on_progress(seen: StartupStatus) -> None:
            self.manager.alive()
            server_process.reap_orphans()
            if options.on_progress:
                options.on_progress(seen)

        # No user is present to refuse a partial restart, so the versions that still load are served.
        return replace(options, on_progress=on_progress, on_note=self.tell, strict=False)

    def _note(self, **changes: object) -> None:
        self._known = replace(self._known, **changes)  # type: ignore[arg-type]
        # A full disk must not end the watch.
        with suppress(OSError):
            supervisor_state.write(self.project, self._known)


def _how(code: int | None) -> str:
    if code is None:
        return ""
    if code >= 0:
        return f", with exit code {code}"
    try:
        return f", killed by {signal.Signals(-code).name}"
    except ValueError:
        return f", killed by signal {-code}"


def detach(project: Project, policy: RestartPolicy, timeout_s: float) -> None:
    """Start a supervisor for a running server as a separate process.

    Raises:
        ServerError: the supervisor ended at once.
    """
    arguments = ["serve", ADOPT_FLAG, "--restart", render_restart(policy), "--timeout", str(timeout_s)]
    environment = {**os.environ, PROJECT_VARIABLE: str(project.root), SUPERVISED_VARIABLE: str(project.run)}
    log = project.run / LOG
    with log.open("wb") as file:
        process = child_processes.start_detached(
            [sys.executable, "-m", "marsmith", *arguments],
            environment,
            # Python looks for modules in the working folder; this folder has none.
            cwd=project.run,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    server_process.remember_child(process)
    while not ((known := supervisor_state.read(project)) and known.pid == process.pid):
        if process.poll() is not None:
            raise ServerError(f"the supervisor ended: {log.read_text(errors='replace').strip()}")
        time.sleep(0.05)
