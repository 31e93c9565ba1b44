"""The shadow strategy: a new version gets copies of requests, and its replies are compared; nobody waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from marsmith.config.rollout_spec import (
    MIN_AGREEMENT,
    SAMPLE,
    SHADOW_TIME,
    RolloutSpec,
    check_agreement,
    check_sample,
    parse_duration,
    parse_sample,
    ten_thousandths,
)
from marsmith.deploy.traffic.canary import Canary
from marsmith.errors import UsageError
from marsmith.predictions import Report
from marsmith.statistics import RateInterval, rate_interval


@dataclass(frozen=True)
class Shadow:
    """Rollout of a version that gets copies of requests first.

    Attributes:
        sample: which part of the requests is copied, in percent, above 0 and at most 100.
        time_s: for how long, in seconds.
        min_agreement: the canary begins if the lower end of the agreement's interval is at least this, 0 to 1.
        then: the canary that follows; None: the version is taken off again.
    """

    sample: float = parse_sample(SAMPLE)
    time_s: float = parse_duration(SHADOW_TIME)
    min_agreement: float = MIN_AGREEMENT
    then: Canary | None = None

    def __post_init__(self) -> None:
        """Raise UsageError if a value is out of its range."""
        check_sample(self.sample)
        check_agreement(self.min_agreement)
        if not self.time_s > 0:
            raise UsageError(f"a shadow of {self.time_s:g} s is not above 0 s", tip="for example 30m")

    @classmethod
    def of(cls, spec: RolloutSpec, given: GivenShadow | None = None) -> Shadow:
        """Return the shadow of a spec, with values that were given for this rollout in place of the spec's."""
        given = given or GivenShadow()
        then = spec.then if given.then is None else given.then
        values = {
            "sample": parse_sample(spec.sample),
            "time_s": parse_duration(spec.time),
            "min_agreement": spec.min_agreement,
            "then": Canary.of(spec, {**given.canary, **_agreement(given.shadow)}) if then == "canary" else None,
        }
        return cls(**{**values, **given.shadow})

    @property
    def part(self) -> int:
        """The sample in ten-thousandths."""
        return ten_thousandths(self.sample)


def _agreement(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the agreement that was given for the shadow, which is that of the canary after it too."""
    return {name: value for name, value in given.items() if name == "min_agreement"}


@dataclass(frozen=True)
class GivenShadow:
    """Values of a shadow, and of the canary after it, that go before those of the spec.

    Attributes:
        shadow: values of ``Shadow`` by name, without ``then``.
        canary: values of ``Canary`` by name.
        then: what follows; None: as the spec says.
    """

    shadow: Mapping[str, Any] = field(default_factory=dict)
    canary: Mapping[str, Any] = field(default_factory=dict)
    then: Literal["canary"] | None = None


@dataclass(frozen=True)
class Trial:
    """What a shadow has done until now.

    Attributes:
        began_s: when the copies began, in seconds since the epoch; 0 before.
        ended_s: when they ended; 0 before.
        copied: requests that were copied to the version.
        dropped: copies that were not sent, because too many were under way.
        counter: what the front had counted at the last look, copied and dropped; it begins anew with each start.
        report: the comparison; None before the first look.
        page: the report as a page with plots; empty before it is written.
    """

    began_s: float = 0.0
    ended_s: float = 0.0
    copied: int = 0
    dropped: int = 0
    counter: tuple[int, int] = (0, 0)
    report: Report | None = None
    page: str = ""

    @property
    def unanswered(self) -> int:
        """Copies without a logged reply: of a version that hangs or crashes."""
        answered = self.report.pairs + self.report.alone[1] if self.report else 0
        return max(0, self.copied - answered)

    @property
    def agreement(self) -> RateInterval:
        """Share of the copies that the version answered as the old one did, with its interval.

        A copy that failed on the new version alone, or that it never answered, counts as one that does not agree.
        """
        if self.report is None:
            return rate_interval(0, 0)
        found = self.report.agreement
        bad = self.report.failed[1] + self.unanswered
        return rate_interval(found.happened, found.observations + bad, found.alpha)


@dataclass(frozen=True)
class Conclusion:
    """What follows from a shadow.

    Attributes:
        kind: ``agrees``: the agreement is at least the minimum; ``disagrees``: it is less; ``inconclusive``: the
            requests were too few to tell.
        reason: the figures, as one sentence.
    """

    kind: Literal["agrees", "disagrees", "inconclusive"]
    reason: str


def conclude(shadow: Shadow, trial: Trial) -> Conclusion:
    """Judge a shadow by the ends of the interval of its agreement. Too few pairs never agree."""
    found, least = trial.agreement, shadow.min_agreement
    if not found.observations:
        return Conclusion("inconclusive", "no reply was compared")
    said = (
        f"agreement {found.rate:.2%} of {found.observations:,} copies, between {found.lower:.2%} and {found.upper:.2%},"
        f" wanted {least:.2%}"
    )
    if found.lower >= least:
        return Conclusion("agrees", said)
    return Conclusion("disagrees" if found.upper < least else "inconclusive", said)
