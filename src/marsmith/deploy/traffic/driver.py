"""Drive the rollout of one model: share by share up, back on evidence, or on to the default version.

What a driver does next follows from the state file and the journal alone, so another process goes on after a SIGKILL.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from marsmith.deploy.front import Share, all_to_default
from marsmith.deploy.rollout.recovery import finish, recover, undo
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.comparing import Comparing
from marsmith.deploy.traffic.decision import (
    OPEN,
    SHADOWING,
    Back,
    Decision,
    Hold,
    Inconclusive,
    Next,
    Standing,
    decide,
)
from marsmith.deploy.traffic.eavesdrop import LogEavesdropper
from marsmith.deploy.traffic.listening import Listen
from marsmith.deploy.traffic.lookout import Lookout
from marsmith.deploy.traffic.record import Record
from marsmith.deploy.traffic.shadowing import Shadowing
from marsmith.deploy.traffic.state import Order, RolloutFile
from marsmith.errors import MarsmithError, ServerError
from marsmith.server import state as server_state

# Pause between two looks at the log, in seconds: most of the time from a fault to the way back is spent waiting.
LOOK_S = 0.05
# Pause after a move that failed, in seconds.
RETRY_S = 1.0


@dataclass
class CanaryDriver:
    """Drives one rollout. The lock of the model's deploys is held.

    Attributes:
        site: the server, the front and the journal.
        file: the state file.
        tell: called with each event, as one sentence.
        lookout: looks for changes by someone else.
        now: clock, in seconds since the epoch.
        listen: opens the logs of both versions of a shadow.
    """

    site: ModelServer
    file: RolloutFile
    tell: Callable[[str], None]
    lookout: Lookout
    now: Callable[[], float] = time.time
    listen: Listen = LogEavesdropper.of
    _record: Record = field(init=False)
    _shadowing: Shadowing = field(init=False)
    _comparing: Comparing = field(init=False)
    _next_move_s: float = 0.0
    _told: str = ""

    def run(self, stop: threading.Event) -> None:
        """Drive until the rollout has ended or ``stop`` is set.

        Raises:
            MarsmithError: the state cannot be read or written.
        """
        self.begin()
        try:
            while not self._record.state.is_over and not stop.is_set():
                self.look()
                stop.wait(LOOK_S)
        finally:
            self._shadowing.close()
            self._comparing.close()

    def begin(self) -> None:
        """Read the state, and take up what was interrupted."""
        state = self.file.read()
        if state is None:
            raise ServerError(f"{self.site.model} has no rollout")
        self._record = record = Record(self.file, self.site.file, state, self.now, self.tell)
        self._shadowing = Shadowing(self.site, record, self.listen)
        self._comparing = Comparing(self.site, record, self.listen)
        if record.change is None:
            self._close_orphan()
            return
        if state.phase in OPEN:
            record.step_journal("canary")
            record.save()
        self.lookout.begin(record.change)

    def look(self) -> None:
        """Look once at answers, orders and the server, and make the move that follows.

        A move that fails is tried again a little later.
        """
        try:
            if self._record.state.phase in OPEN:
                self._read_answers()
            if self.now() >= self._next_move_s:
                self._move()
        except MarsmithError as error:
            self._next_move_s = self.now() + RETRY_S
            if error.message != self._told:
                self._told = error.message
                self.tell(f"{self._record.name}: {self._record.state.phase}: {error.message}; it is tried again")

    def _read_answers(self) -> None:
        answers, position = self.site.front.answers(self._record.state.position)
        if answers:
            self._record.weigh(tuple(answers), position)

    def _carry_out(self, order: Order) -> None:
        if order == "pause":
            self._record.enter("paused", "by an operator")
        elif order == "resume":
            self._go_to(max(self._record.state.step, 0))
        elif order == "promote":
            self._end_comparisons()
            self._record.enter("promoting", "by an operator")
        elif order == "abort":
            self._go_back("aborted by an operator")
        else:
            self._leave()

    def _move(self) -> None:
        order, changed = self.file.pending(self._record.state), self.lookout.look()
        if self._record.state.phase == "promoting":
            self._promote()
        elif self._record.state.phase == "going back":
            self._undo()
        elif order is not None:
            self._carry_out(order)
            self.file.carried_out()
        elif changed is not None:
            self._give_way(changed)
        elif self.site.front.missing:
            self._go_back(self.site.front.missing)
        elif self._record.state.phase in SHADOWING:
            self._follow_shadow()
        else:
            self._set_share(self._record.state.share)
            self._comparing.move()
            self._act(self._decision())

    def _follow_shadow(self) -> None:
        trouble = self._record.weighing.trouble()
        if trouble:
            # The copies share the machine with the version that answers users.
            self._go_back(trouble)
            return
        conclusion = self._shadowing.move()
        if conclusion is None:
            return
        shadow = self._record.state.shadow
        if conclusion.kind == "agrees" and shadow and shadow.then:
            self._record.note(f"the canary begins: {conclusion.reason}")
            self.site.front.set_copies(self.site.model, None)
            self._go_to(0)
        else:
            self._go_back(f"{conclusion.kind}: {conclusion.reason}")

    def _decision(self) -> Decision:
        state = self._record.state
        if state.step < 0:
            return Next(0) if state.phase == "rising" else Hold()
        at_step_s = self.now() - state.step_began_s
        weighing = self._record.weighing
        standing = Standing(
            state.phase, state.step, at_step_s, state.step_answers, weighing.trouble(), weighing.missing()
        )
        return decide(state.canary, standing)

    def _act(self, decision: Decision) -> None:
        if isinstance(decision, Back):
            self._go_back(decision.reason)
        elif isinstance(decision, Next):
            self._go_to(decision.step)
        elif isinstance(decision, Inconclusive):
            self._record.enter("inconclusive", decision.reason)
        elif not isinstance(decision, Hold):
            self._record.enter("promoting")

    def _go_to(self, step: int) -> None:
        self._set_share(self._record.state.canary.shares[step])
        self._record.begin_step(step)

    def _go_back(self, reason: str) -> None:
        # Users come first: the state is written once the canary gets no requests any more.
        self._set_share(0)
        self._end_comparisons()
        self._record.enter("going back", reason)

    def _undo(self) -> None:
        record = self._record
        if record.change is not None:
            record.journal = undo(self.site, record.journal, record.change)
        self._end()
        record.enter("compared" if record.state.was_compared else "back", record.state.reason)

    def _promote(self) -> None:
        record = self._record
        self._comparing.end()
        record.step_journal("promote")
        if record.change is not None:
            record.journal = finish(self.site, record.journal, record.change)
        self._end()
        record.enter("promoted", record.state.reason)

    def _give_way(self, reason: str) -> None:
        """End the rollout, because someone else has changed the model: what they changed stands."""
        self._set_share(0)
        self._end_comparisons()
        self._record.journal = recover(self.site, self._record.journal)
        self._end()
        self._record.enter("left", reason)

    def _leave(self) -> None:
        """End the rollout with both versions registered, for a command that changes one of them next."""
        self._end_comparisons()
        all_to_default(self.site.front, self.site.model)
        self._record.close_journal()
        self._record.enter("left", "another command changes the model")

    def _close_orphan(self) -> None:
        """End a rollout whose deploy was finished or undone without it."""
        all_to_default(self.site.front, self.site.model)
        releases = self._record.journal.releases
        promoted = bool(releases) and releases[-1].version == self._record.state.version
        self._record.enter("promoted" if promoted else "back", "ended by another command")

    def _end(self) -> None:
        # What is registered now must outlive a restart of the server.
        server_state.record(self.site.project, self.site.contents)

    def _end_comparisons(self) -> None:
        if self._record.state.phase in SHADOWING and not self._record.state.trial.page:
            self._shadowing.cut_short()
        self._comparing.end()

    def _set_share(self, share: int) -> None:
        """Give the canary this share, in ten-thousandths, if it has another. With 0 it can still repeat requests.

        Raises:
            ServerError: the front does not take it.
        """
        state, front = self._record.state, self.site.front
        now = front.share_of(state.model)
        wanted = Share(state.version, share, state.canary.sticky_key, state.level.try_timeout_s)
        if now != wanted and (share or now is not None):
            front.set_share(state.model, wanted)
        self._record.weighing.share_is(share, self.now())
