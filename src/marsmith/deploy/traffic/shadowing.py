"""The moves of a shadow: copy requests for some time, compare the replies, report, and go on or take it off."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.eavesdrop import LogEavesdropper
from marsmith.deploy.traffic.listening import LOOK_S, Listen, Listening
from marsmith.deploy.traffic.record import Record
from marsmith.deploy.traffic.shadow import Conclusion, Shadow, conclude

# How long the last copies and the lines about them are waited for, in seconds. A hung version never answers.
SETTLE_S = 20.0
# A line of a log is written a moment after its reply.
QUIET_LOOKS = 2


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
    _copies: Listening = field(init=False)
    _next_look_s: float = 0.0
    _quiet: int = 0

    def __post_init__(self) -> None:
        """Begin without copies."""
        self._copies = Listening(self.site, self.record, self.listen, "trial")

    def move(self) -> Conclusion | None:
        """Do what is due; return the conclusion once the copies have ended and are compared."""
        now, state = self.record.now(), self.record.state
        if state.phase == "shadowing" and not state.trial.began_s:
            self._begin(now)
        if state.phase == "shadowing":
            self._copies.set_part(self._shadow.part)
        if now < self._next_look_s:
            return None
        self._next_look_s = now + LOOK_S
        self._quiet = 0 if self._copies.look() else self._quiet + 1
        if state.phase == "settling":
            late = now - state.trial.ended_s >= SETTLE_S
            return self._conclude() if late or self._quiet >= QUIET_LOOKS else None
        if now - self.record.state.trial.began_s >= self._shadow.time_s:
            self._stop_copies(now)
        return None

    def cut_short(self) -> None:
        """End the copies now, and report what was found; for a rollout that is ended before its time."""
        if self.record.state.trial.began_s:
            self._copies.set_part(0)
            self._copies.look()
            self._copies.write_report()
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._copies.close()

    @property
    def _shadow(self) -> Shadow:
        return self.record.state.shadow or Shadow()

    def _begin(self, now: float) -> None:
        # Written first: what is logged from this moment on belongs to the shadow, also after a SIGKILL.
        self._copies.keep(replace(self.record.state.trial, began_s=now))
        self.record.note(f"{self._shadow.sample:g}% of the requests are copied")

    def _stop_copies(self, now: float) -> None:
        # The counters of copies stay while a sample of 0 is in force.
        self._copies.set_part(0)
        self._quiet = 0
        self._copies.keep(replace(self.record.state.trial, ended_s=now))
        self.record.enter("settling")

    def _conclude(self) -> Conclusion:
        self._copies.write_report()
        self.close()
        return conclude(self._shadow, self.record.state.trial)
