"""State of a model's rollout, ``.marsmith/rollouts/<model>.json``: what a driver needs to go on after it was killed.

Only the driver of the rollout writes it, under the lock of the model's deploys. Orders of an operator are files of
their own beside it, which the driver removes when it has carried them out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from marsmith import files, state_files
from marsmith.deploy.traffic.canary import Canary
from marsmith.deploy.traffic.decision import ENDED, OPEN, Phase
from marsmith.deploy.traffic.shadow import Shadow, Trial
from marsmith.deploy.traffic.tally import Tally
from marsmith.errors import FormatError, ServerError, UsageError
from marsmith.file_errors import state_error
from marsmith.server import processes
from marsmith.state.model_file import ModelFile
from marsmith.state_files import NewerFormatError

FORMAT = 1
# When the timeline has more moments, every other plain one is dropped.
MOST_MOMENTS = 600

Order = Literal["pause", "resume", "promote", "abort", "leave"]


@dataclass(frozen=True)
class Driver:
    """The process that drives a rollout: its id, and its creation time from psutil, in seconds since the epoch."""

    pid: int
    created: float

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return processes.frontend(self.pid, self.created) is not None


def this_process() -> Driver:
    """Return this process as a driver."""
    import psutil

    return Driver(os.getpid(), psutil.Process().create_time())


@dataclass(frozen=True)
class Moment:
    """One point of the timeline.

    Attributes:
        at_s: seconds since the epoch.
        share: share of the canary, in ten-thousandths.
        phase: phase from then on.
        what: what happened; empty for a plain sample.
        evidence: evidence by kind of event.
    """

    at_s: float
    share: int
    phase: Phase
    what: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Level:
    """Limits of the model that a rollout keeps.

    Attributes:
        p99_ms: latency limit of its service level, in milliseconds; None if it has none.
        try_timeout_s: time after which a request is given up on the canary, in seconds.
    """

    p99_ms: float | None
    try_timeout_s: float


@dataclass(frozen=True)
class RolloutState:
    """A rollout.

    Attributes:
        model: model name.
        version: the canary.
        stable: the default version before.
        canary: the strategy.
        level: limits of the model.
        began_s: seconds since the epoch.
        phase: its phase.
        step: index of the present share; -1 before the first.
        step_began_s: when this share began or was resumed, in seconds since the epoch.
        step_answers: answers of the canary since then.
        reason: why it is in this phase; empty if it needs no reason.
        canary_tally: counts of the canary.
        stable_tally: counts of the stable version.
        slow_ms: latency above which an answer is slow, in milliseconds; None while it is not known.
        ledger: evidence, as ``marsmith.statistics`` records it; empty before the first event.
        position: how far the front's log of answers has been read, in bytes.
        timeline: moments, the first first.
        driver: the process that drives it; None before the first.
        ended_s: when it ended, in seconds since the epoch; None while it goes on.
        shadow: the strategy before the canary, or instead of it; None: there is none.
        trial: what the shadow has done.
        comparison: what the copies of the canary's requests to the old version have shown.
        compared_s: replies that were logged until then have been weighed, in seconds since the epoch.
    """

    model: str
    version: str
    stable: str
    canary: Canary
    level: Level
    began_s: float
    phase: Phase = "rising"
    step: int = -1
    step_began_s: float = 0.0
    step_answers: int = 0
    reason: str = ""
    canary_tally: Tally = field(default_factory=Tally)
    stable_tally: Tally = field(default_factory=Tally)
    slow_ms: float | None = None
    ledger: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    timeline: tuple[Moment, ...] = ()
    driver: Driver | None = None
    ended_s: float | None = None
    shadow: Shadow | None = None
    trial: Trial = field(default_factory=Trial)
    comparison: Trial = field(default_factory=Trial)
    compared_s: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.phase in ENDED

    @property
    def was_compared(self) -> bool:
        """Whether a shadow that nothing follows has run to its end."""
        return self.shadow is not None and self.shadow.then is None and self.trial.ended_s > 0

    @property
    def is_watched(self) -> bool:
        """Whether a living process drives it."""
        return self.driver is not None and self.driver.is_alive

    @property
    def share(self) -> int:
        """Share of the requests that the canary is to get, in ten-thousandths."""
        return self.canary.shares[self.step] if self.phase in OPEN and self.step >= 0 else 0

    def at(
        self, now_s: float, phase: Phase, reason: str = "", evidence: Mapping[str, float] | None = None
    ) -> RolloutState:
        """Return this state in another phase."""
        ended = now_s if phase in ENDED else None
        after = replace(self, phase=phase, reason=reason, ended_s=ended)
        return after.noted(now_s, f"{phase}: {reason}" if reason else phase, evidence)

    def at_step(self, step: int, now_s: float, evidence: Mapping[str, float] | None = None) -> RolloutState:
        """Return this state at the beginning of a step."""
        after = replace(self, phase="rising", reason="", step=step, step_began_s=now_s, step_answers=0)
        return after.noted(now_s, f"{self.canary.steps[step]:g}% of the requests", evidence)

    def noted(self, now_s: float, what: str = "", evidence: Mapping[str, float] | None = None) -> RolloutState:
        """Return this state with one more moment in the timeline."""
        timeline = (*self.timeline, Moment(now_s, self.share, self.phase, what, evidence or {}))
        if len(timeline) > MOST_MOMENTS:
            timeline = tuple(each for i, each in enumerate(reversed(timeline)) if each.what or i % 2 == 0)[::-1]
        return replace(self, timeline=timeline)


def render_rollout(state: RolloutState) -> str:
    """Render the file."""
    return state_files.render(state, FORMAT)


def parse_rollout(text: str, source: str) -> RolloutState:
    """Parse the file; ``parse_rollout(render_rollout(s), ...) == s``.

    Raises:
        FormatError: it is damaged, or a later marsmith wrote it.
    """
    try:
        state = state_files.parse(RolloutState, text, source, version=FORMAT)
    except UsageError as error:
        raise FormatError(source, [error.message]) from None
    if not -1 <= state.step < len(state.canary.steps):
        raise FormatError(source, [f"step {state.step} is not one of the {len(state.canary.steps)} steps"])
    return state


class RolloutFile(ModelFile):
    """The state file of one model's rollout, ``.marsmith/rollouts/<model>.json``."""

    FOLDER = "rollouts"

    def read(self) -> RolloutState | None:
        """Read the state; None if the model never had a rollout.

        Raises:
            ServerError: it is damaged, or a later marsmith wrote it.
        """
        try:
            return parse_rollout(self.path.read_text(encoding="utf-8"), str(self.path))
        except FileNotFoundError:
            return None
        except NewerFormatError as error:
            raise ServerError(error.message, tip=error.tip) from None
        except NotADirectoryError as error:
            # A file in the place of a folder is not damage of this one.
            raise state_error(error) from None
        except (OSError, UnicodeDecodeError, FormatError) as error:
            raise ServerError(
                f"the state of {self.model}'s rollout cannot be read: {error}",
                tip=f"remove it (rm {self.path}); then the next marsmith deploy of {self.model} undoes the rollout",
            ) from None

    def write(self, state: RolloutState) -> None:
        """Write the state atomically.

        Raises:
            ServerError: it cannot be written; the previous state is kept.
        """
        try:
            files.write_atomically(self.path, render_rollout(state), mode=0o600)
        except OSError as error:
            raise ServerError(f"cannot write the state of the rollout {self.path}: {error.strerror}") from None

    def order(self, order: Order, rollout: RolloutState) -> None:
        """Leave an order for the driver of this rollout; it replaces one that is not carried out yet."""
        text = json.dumps({"order": order, "version": rollout.version, "began_s": rollout.began_s})
        files.write_atomically(self._orders, text + "\n", mode=0o600)

    def pending(self, rollout: RolloutState) -> Order | None:
        """Return the order for this rollout; None if there is none. One for another rollout is removed."""
        try:
            found = state_files.validate(_Order, json.loads(self._orders.read_bytes()), str(self._orders))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, FormatError):
            self.carried_out()
            return None
        if (found.version, found.began_s) == (rollout.version, rollout.began_s):
            return found.order
        self.carried_out()
        return None

    def carried_out(self) -> None:
        """Remove the order."""
        self._orders.unlink(missing_ok=True)

    @property
    def _orders(self) -> Path:
        return self.path.with_suffix(".order")


@dataclass(frozen=True)
class _Order:
    order: Order
    version: str
    began_s: float
