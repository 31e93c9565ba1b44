"""Drive a rollout in this process, or in a supervisor while it watches the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing

from marsmith.deploy.front import Front, all_to_default
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.driver import CanaryDriver
from marsmith.deploy.traffic.envoy import front_of
from marsmith.deploy.traffic.lookout import ServerLookout
from marsmith.deploy.traffic.state import RolloutFile
from marsmith.errors import MarsmithError
from marsmith.project import Project
from marsmith.server.opened import open_server
from marsmith.state.journal import JournalFile

# A command that hands a rollout over holds the lock for a moment more.
_LOCK_WAIT_S = 5.0
# Interval between two looks for rollouts, in seconds.
_LOOK_S = 0.2
# Pause before a drive that failed is begun again, in seconds.
_AGAIN_S = 2.0
_END_S = 2.0


def drive(
    project: Project,
    model: str,
    stop: threading.Event,
    tell: Callable[[str], None],
    front: Callable[[Project], Front] = front_of,
) -> None:
    """Drive the rollout of a model until it has ended or ``stop`` is set.

    Args:
        project: the project of the running server.
        model: model name.
        stop: set to end the drive; another process can go on with it.
        tell: called with each event, as one sentence.
        front: returns the front of a project.

    Raises:
        MarsmithError: another process drives it, the server does not answer, or a file cannot be read or written.
    """
    journal, rollout = JournalFile.of(project, model), RolloutFile.of(project, model)
    with journal.locked(_LOCK_WAIT_S), open_server(project) as server:
        site = ModelServer(server, journal, front=front(project))
        with closing(ServerLookout(project, model)) as lookout:
            CanaryDriver(site, rollout, tell, lookout).run(stop)


class RolloutDuty:
    """The duty of a supervisor to drive the project's rollouts, each in a thread of its own.

    Attributes:
        name: name for messages.
    """

    name = "rollouts"

    def __init__(self, project: Project, tell: Callable[[str], None]) -> None:
        """Begin with no rollout.

        Args:
            project: the project of the server.
            tell: called with each event, as one sentence, from other threads.
        """
        self._project, self._tell = project, tell
        self._stop = threading.Event()
        self._threads: dict[str, threading.Thread] = {}
        self._not_before: dict[str, float] = {}
        self._next_look = 0.0
        # Models without a rollout whose requests all go to the default version.
        self._plain: set[str] = set()
        self._told: set[str] = set()

    def tick(self) -> None:
        """Begin to drive the rollouts that nobody drives."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        for model in RolloutFile.models(self._project):
            try:
                self._look_at(model, now)
            except MarsmithError as error:
                # The other models' rollouts must go on.
                self._tell_once(f"rollout of {model}: {error.message}")

    def close(self) -> None:
        """Stop driving. The rollouts stay as they are."""
        self._stop.set()
        late = time.monotonic() + _END_S
        for thread in self._threads.values():
            thread.join(max(0.0, late - time.monotonic()))

    def _look_at(self, model: str, now: float) -> None:
        thread = self._threads.get(model)
        if (thread and thread.is_alive()) or now < self._not_before.get(model, 0.0):
            return
        state = RolloutFile.of(self._project, model).read()
        if state and not state.is_over:
            self._begin(model, now)
        elif model not in self._plain:
            self._send_all_to_default(model)

    def _send_all_to_default(self, model: str) -> None:
        """Take away the share of a rollout that ended while the server ran without the front."""
        all_to_default(front_of(self._project), model)
        self._plain.add(model)

    def _begin(self, model: str, now: float) -> None:
        self._plain.discard(model)
        self._not_before[model] = now + _AGAIN_S
        thread = threading.Thread(target=self._drive, args=(model,), name=f"rollout {model}", daemon=True)
        self._threads[model] = thread
        thread.start()

    def _drive(self, model: str) -> None:
        try:
            drive(self._project, model, self._stop, self._tell)
        except MarsmithError as error:
            self._tell_once(f"rollout of {model}: {error.message}; it is tried again")
        except Exception as error:  # another model's rollout must go on, whatever this one raises
            self._tell_once(f"rollout of {model}: {error!r}; it is tried again")

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)
