"""The next move of a canary, decided from counts, evidence and time alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from marsmith.deploy.traffic.canary import Canary

# A canary begins as rising, and a shadow as shadowing. A rollout ends in one of the last four.
Phase = Literal[
    "shadowing",
    "settling",
    "rising",
    "paused",
    "inconclusive",
    "promoting",
    "going back",
    "promoted",
    "back",
    "left",
    "compared",
]
ENDED: frozenset[Phase] = frozenset({"promoted", "back", "left", "compared"})
# In these the version gets copies of requests, or the last of them are under way.
SHADOWING: frozenset[Phase] = frozenset({"shadowing", "settling"})
# In these the rollout goes on. A canary has a share of the requests, and evidence against it counts.
OPEN: frozenset[Phase] = SHADOWING | {"rising", "paused", "inconclusive"}


@dataclass(frozen=True)
class Standing:
    """A rollout at one moment.

    Attributes:
        phase: its phase.
        step: index of the present share.
        at_step_s: time at this share without pauses, in seconds.
        answers: number of answers of the canary at this share.
        trouble: why the canary must not stay: evidence against it, or the stable version above its own limit; None if
            there is no reason.
        missing: what there is too little of for a promotion, with its count; None if there is enough.
    """

    phase: Phase
    step: int
    at_step_s: float
    answers: int
    trouble: str | None = None
    missing: str | None = None


@dataclass(frozen=True)
class Hold:
    """Leave everything as it is."""


@dataclass(frozen=True)
class Next:
    """Go on to the next share, the step of this index."""

    step: int


@dataclass(frozen=True)
class Back:
    """Take the canary off, for this reason."""

    reason: str


@dataclass(frozen=True)
class Promote:
    """Make the canary the default version."""


@dataclass(frozen=True)
class Inconclusive:
    """Stay at this share and wait for a person, for this reason."""

    reason: str


Decision = Hold | Next | Back | Promote | Inconclusive


def decide(canary: Canary, standing: Standing) -> Decision:
    """Decide what to do next. Too little traffic never promotes, and trouble always goes back."""
    if standing.phase not in OPEN:
        return Hold()
    if standing.trouble:
        return Back(standing.trouble)
    if standing.phase != "rising" or standing.at_step_s < canary.interval_s:
        return Hold()
    if standing.answers < canary.min_requests:
        return _too_few(canary, standing, f"{standing.answers} answers of the canary")
    if standing.step + 1 < len(canary.steps):
        return Next(standing.step + 1)
    if standing.missing:
        return _too_few(canary, standing, standing.missing)
    return Promote()


def _too_few(canary: Canary, standing: Standing, found: str) -> Hold | Inconclusive:
    if standing.at_step_s < canary.max_wait_s:
        return Hold()
    return Inconclusive(
        f"{found} in {standing.at_step_s:.0f} s at {canary.steps[standing.step]:g}%, and {canary.min_requests} are"
        " needed"
    )
