"""The moves of a shadow: copy requests for some time, compare the replies, report, and go on or take it off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from marsmith.deploy.front import Copies, CopyCounts
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.eavesdrop import Eavesdropper, LogEavesdropper, Subject
from marsmith.deploy.traffic.record import Record
from marsmith.deploy.traffic.shadow import Conclusion, Shadow, Trial, conclude
from marsmith.deploy.traffic.shadow_report import write_report
from marsmith.errors import MarsmithError

# Interval between two looks at the logs, in seconds.
LOOK_S = 1.0
# How long the last copies and the lines about them are waited for, in seconds. A hung version never answers.
SETTLE_S = 20.0
# A line of a log is written a moment after its reply.
QUIET_LOOKS = 2

Listen = Callable[[ModelServer, Subject, Callable[[str], None]], Eavesdropper]


@dataclass
class Shadowing:
    """Moves the shadow of one rollout.

    Attributes:
        site: the server and the front.
        record: the state of the rollout.
        listen: opens the logs of both versions.
    """

    site: ModelServer
    record: Record
    listen: Listen = LogEavesdropper.of
    _ears: Eavesdropper | None = None
    _next_look_s: float = 0.0
    _quiet: int = 0
    _told: str = ""

    def move(self) -> Conclusion | None:
        """Do what is due; return the conclusion once the copies have ended and are compared."""
        now, state = self.record.now(), self.record.state
        if state.phase == "shadowing" and not state.trial.began_s:
            self._begin(now)
        if state.phase == "shadowing":
            self._set_part(self._shadow.part)
        if now < self._next_look_s:
            return None
        self._next_look_s = now + LOOK_S
        self._quiet = 0 if self._look() else self._quiet + 1
        if state.phase == "settling":
            late = now - state.trial.ended_s >= SETTLE_S
            return self._conclude() if late or self._quiet >= QUIET_LOOKS else None
        if now - self.record.state.trial.began_s >= self._shadow.time_s:
            self._stop_copies(now)
        return None

    def cut_short(self) -> None:
        """End the copies now, and report what was found; for a rollout that is ended before its time."""
        if self.record.state.trial.began_s:
            self._set_part(0)
            self._look()
            self._report()
        self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._ears is not None:
            self._ears.close()
            self._ears = None

    @property
    def _shadow(self) -> Shadow:
        return self.record.state.shadow or Shadow()

    def _begin(self, now: float) -> None:
        # Written first: what is logged from this moment on belongs to the shadow, also after a SIGKILL.
        self._keep(replace(self.record.state.trial, began_s=now))
        self.record.note(f"{self._shadow.sample:g}% of the requests are copied")

    def _stop_copies(self, now: float) -> None:
        # The counters of copies stay while a sample of 0 is in force.
        self._set_part(0)
        self._quiet = 0
        self._keep(replace(self.record.state.trial, ended_s=now))
        self.record.enter("settling")

    def _set_part(self, part: int) -> None:
        front, state = self.site.front, self.record.state
        wanted, in_force = Copies(state.version, part), front.copies_of(state.model)
        if in_force != wanted and (part or in_force is not None):
            front.set_copies(state.model, wanted)

    def _look(self) -> bool:
        """Compare what was logged since the last look; return whether there is more to come.

        What cannot be read now may be readable at the next look: the time of a shadow ends in any case.
        """
        try:
            counts = self.site.front.copy_counts(self.record.state.model)
            ears = self._ears = self._ears or self.listen(self.site, self._subject(), self.record.tell)
            came = ears.read()
        except MarsmithError as error:
            self._complain(error)
            return True
        self._keep(replace(counted(self.record.state.trial, counts), report=ears.report()))
        return came or counts.under_way > 0

    def _subject(self) -> Subject:
        state = self.record.state
        return Subject(state.model, state.stable, state.version, state.trial.began_s)

    def _conclude(self) -> Conclusion:
        self._report()
        self.close()
        return conclude(self._shadow, self.record.state.trial)

    def _report(self) -> None:
        try:
            page = write_report(self.record.file.path.parent / "reports", self.record.state)
        except MarsmithError as error:
            # A full disk must not keep the version on trial.
            self._complain(error)
        else:
            self._keep(replace(self.record.state.trial, page=str(page)))

    def _complain(self, error: MarsmithError) -> None:
        if error.message != self._told:
            self._told = error.message
            self.record.tell(f"{self.record.name}: {error.message}")

    def _keep(self, trial: Trial) -> None:
        if trial != self.record.state.trial:
            self.record.state = replace(self.record.state, trial=trial)
            self.record.save()


def counted(trial: Trial, counts: CopyCounts) -> Trial:
    """Return the trial with what the front has counted since the last look. Counters begin anew with each start."""
    (sent, dropped), now = trial.counter, (counts.sent, counts.dropped)
    if counts.sent < sent or counts.dropped < dropped:
        sent = dropped = 0
    return replace(
        trial,
        copied=trial.copied + counts.sent - sent,
        dropped=trial.dropped + counts.dropped - dropped,
        counter=now,
    )
