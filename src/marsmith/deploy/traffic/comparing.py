"""The comparison that goes on during a canary: the old version gets copies of a part of the canary's requests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.eavesdrop import LogEavesdropper
from marsmith.deploy.traffic.listening import LOOK_S, Listen, Listening
from marsmith.deploy.traffic.record import Record
from marsmith.predictions import Difference, Pair


@dataclass
class Comparing:
    """Lets disagreement with the old version count as evidence.

    Attributes:
        site: the server and the front.
        record: the state of the rollout.
        listen: opens the logs of both versions.
    """

    site: ModelServer
    record: Record
    listen: Listen = LogEavesdropper.of
    _copies: Listening = field(init=False)
    _since_s: float = field(init=False)
    _next_look_s: float = 0.0
    _held: list[tuple[Pair, Difference]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin without copies."""
        self._copies = Listening(self.site, self.record, self.listen, "comparison")
        # An earlier driver has weighed what came before. The logs are read from their beginning for the report.
        self._since_s = self.record.state.compared_s

    def move(self) -> None:
        """Do what is due, if the canary's replies are to be compared."""
        now, state = self.record.now(), self.record.state
        if state.canary.compare is None or state.step < 0:
            return
        if not state.comparison.began_s:
            self._copies.keep(replace(state.comparison, began_s=now))
            self.record.note(f"{state.canary.compare:g}% of its requests are copied to {state.stable}")
        self._copies.set_part(state.canary.compared_part)
        if now >= self._next_look_s:
            self._next_look_s = now + LOOK_S
            self._weigh(now)

    def end(self) -> None:
        """Report what was found. The copies end with the share of the canary."""
        if self.record.state.comparison.began_s and not self.record.state.comparison.page:
            self._copies.look()
            self._copies.write_report()
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._copies.close()

    def _weigh(self, now: float) -> None:
        # A look later than they were found: by then the front's log says whose requests they are.
        self.record.weighing.add_compared(self._held)
        self.record.state = replace(self.record.state, compared_s=now)
        self._copies.look()
        self._held = [each for each in self._copies.found if min(_times(each[0])) > self._since_s]


def _times(pair: Pair) -> tuple[float, float]:
    return pair.old.time, pair.new.time
