"""Copies of a rollout's requests, and the comparison of what both versions reply to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from marsmith.deploy.front import Copies, CopyCounts
from marsmith.deploy.rollout.site import ModelServer
from marsmith.deploy.traffic.eavesdrop import Eavesdropper, Subject
from marsmith.deploy.traffic.record import Record
from marsmith.deploy.traffic.shadow import Trial
from marsmith.deploy.traffic.shadow_report import Kind, write_report
from marsmith.errors import MarsmithError
from marsmith.predictions import Difference, Pair

# Interval between two looks at the logs, in seconds.
LOOK_S = 1.0

Listen = Callable[[ModelServer, Subject, Callable[[str], None]], Eavesdropper]


@dataclass
class Listening:
    """Sends copies, and compares the replies.

    Attributes:
        site: the server and the front.
        record: the state of the rollout.
        listen: opens the logs of both versions.
        of: whose requests are copied: those of the old version to the new one (``trial`` in the state), or those of
            the canary to the old version (``comparison``).
        found: pairs that the last look has compared.
    """

    site: ModelServer
    record: Record
    listen: Listen
    of: Kind
    found: list[tuple[Pair, Difference]] = field(default_factory=list)
    _ears: Eavesdropper | None = None
    _told: str = ""

    @property
    def trial(self) -> Trial:
        """What was done until now."""
        return self.record.state.trial if self.of == "trial" else self.record.state.comparison

    def keep(self, trial: Trial) -> None:
        """Write what was done into the state, if it is new."""
        if trial != self.trial:
            state = self.record.state
            self.record.state = replace(state, trial=trial) if self.of == "trial" else replace(state, comparison=trial)
            self.record.save()

    def set_part(self, part: int) -> None:
        """Copy this part of the requests, in ten-thousandths, if another one is in force.

        Raises:
            ServerError: the front does not take it.
        """
        front, model = self.site.front, self.record.state.model
        wanted = Copies("" if self._of_canary else self.record.state.version, part)
        in_force = front.copies_of(model, of_canary=self._of_canary)
        if in_force != wanted and (part or in_force is not None):
            front.set_copies(model, wanted, of_canary=self._of_canary)

    def look(self) -> bool:
        """Compare what was logged since the last look; return whether there is more to come.

        What cannot be read now may be readable at the next look.
        """
        self.found = []
        try:
            counts = self.site.front.copy_counts(self.record.state.model, of_canary=self._of_canary)
            ears = self._ears = self._ears or self.listen(self.site, self._subject(), self.record.tell)
            came, self.found = ears.read(), ears.taken()
        except MarsmithError as error:
            self._complain(error)
            return True
        self.keep(replace(counted(self.trial, counts), report=ears.report()))
        return came or counts.under_way > 0

    def write_report(self) -> None:
        """Write what was found as JSON and as a page."""
        try:
            page = write_report(self.record.file.path.parent / "reports", self.record.state, self.of)
        except MarsmithError as error:
            # A full disk must not keep the version on trial.
            self._complain(error)
        else:
            self.keep(replace(self.trial, page=str(page)))

    def close(self) -> None:
        """Stop reading."""
        if self._ears is not None:
            self._ears.close()
            self._ears = None

    @property
    def _of_canary(self) -> bool:
        return self.of == "comparison"

    def _subject(self) -> Subject:
        state = self.record.state
        copied_to = state.stable if self._of_canary else state.version
        return Subject(state.model, state.stable, state.version, self.trial.began_s, copied_to)

    def _complain(self, error: MarsmithError) -> None:
        if error.message != self._told:
            self._told = error.message
            self.record.tell(f"{self.record.name}: {error.message}")


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
