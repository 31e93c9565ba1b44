"""What a driver knows of its rollout, and its two files: the state of the rollout and the journal of the deploy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from marsmith.deploy.front import Answer
from marsmith.deploy.traffic.decision import Phase
from marsmith.deploy.traffic.evidence import Weighing
from marsmith.deploy.traffic.state import RolloutFile, RolloutState, this_process
from marsmith.state.journal import Change, Journal, JournalFile

# While there are answers, the state is written this often, in seconds.
SAVE_S = 1.0


@dataclass
class Record:
    """The state, the journal and the evidence of one rollout.

    Attributes:
        file: the state file.
        journal_file: the journal file; its lock is held.
        now: clock, in seconds since the epoch.
        tell: called with each change of phase, as one sentence.
        state: the state.
        journal: the journal.
        weighing: the evidence.
    """

    file: RolloutFile
    journal_file: JournalFile
    state: RolloutState
    now: Callable[[], float]
    tell: Callable[[str], None]
    journal: Journal = field(init=False)
    weighing: Weighing = field(init=False)
    _saved_s: float = 0.0

    def __post_init__(self) -> None:
        """Read the journal, and note that this process drives the rollout from now on."""
        self.weighing = Weighing(self.state)
        self.state = replace(self.state, driver=this_process())
        self.journal = self.journal_file.read()

    @property
    def name(self) -> str:
        """Model and version of the canary."""
        return f"{self.state.model}:{self.state.version}"

    @property
    def change(self) -> Change | None:
        """The change of the journal, if it is this rollout's."""
        change = self.journal.change
        return change if change and change.target.version == self.state.version else None

    def weigh(self, answers: tuple[Answer, ...], position: int) -> None:
        """Weigh answers that end at a position of the log. The state is written about once a second."""
        more = self.weighing.add(answers)
        self.state = replace(self.state, position=position, step_answers=self.state.step_answers + more)
        if self.now() - self._saved_s >= SAVE_S:
            self.state = self.state.noted(self.now(), evidence=self.weighing.values())
            self.save()

    def enter(self, phase: Phase, reason: str = "") -> None:
        """Note that the rollout enters a phase."""
        self.state = self.state.at(self.now(), phase, reason, self.weighing.values())
        self.save()
        self.tell(f"{self.name}: {phase}{f': {reason}' if reason else ''}")

    def note(self, what: str) -> None:
        """Note in the timeline what has happened."""
        self.state = self.state.noted(self.now(), what, self.weighing.values())
        self.save()
        self.tell(f"{self.name}: {what}")

    def begin_step(self, step: int) -> None:
        """Note that a step begins."""
        self.state = self.state.at_step(step, self.now(), self.weighing.values())
        self.save()
        self.tell(f"{self.name} gets {self.state.canary.steps[step]:g}% of the requests")

    def step_journal(self, step: str) -> None:
        """Note the next step of the deploy in the journal."""
        self.journal = self.journal.at(step)
        self.journal_file.write(self.journal)

    def close_journal(self) -> None:
        """End the change of the journal; both versions stay as they are."""
        self.journal = self.journal.ended()
        self.journal_file.write(self.journal)

    def save(self) -> None:
        """Write the state."""
        self.state = self.weighing.into(self.state)
        self.file.write(self.state)
        self._saved_s = self.now()
