"""The canary strategy: which share of the requests a new version gets, when it gets more, and when it is given up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from marsmith.config.rollout_spec import (
    ALPHA,
    INTERVAL,
    MAX_WAIT,
    MIN_AGREEMENT,
    MIN_REQUESTS,
    STEPS,
    RolloutSpec,
    StickyKey,
    check_agreement,
    check_sample,
    check_steps,
    check_times,
    parse_duration,
    parse_sample,
    parse_sticky,
    ten_thousandths,
)
from marsmith.errors import UsageError

# A version that meets its latency limit must never be cut by the shield, not even in its slowest request of a day.
_TRY_PER_LIMIT = 10
_SHORTEST_TRY_S = 1.0


@dataclass(frozen=True)
class Canary:
    """Rollout of a version share by share.

    Attributes:
        steps: shares in percent, rising, above 0 and below 100.
        interval_s: minimum time at each share, in seconds.
        min_requests: minimum number of answers of the canary at each share.
        max_wait_s: time at one share after which too few requests make the rollout inconclusive, in seconds.
        sticky: ``header:NAME`` or ``cookie:NAME``, so that all requests of a user go to one version; None: each request
            by itself.
        alpha: probability, 0 to 1, that a version as good as the old one goes back, over the whole rollout.
        compare: percentage of the canary's requests that the old version gets too, above 0 and at most 100, so that
            replies that differ are evidence; None: replies are not compared.
        min_agreement: share of the replies, 0 to 1, that may be expected to agree; a lower one is evidence.
    """

    steps: tuple[float, ...] = field(default=STEPS)
    interval_s: float = parse_duration(INTERVAL)
    min_requests: int = MIN_REQUESTS
    max_wait_s: float = parse_duration(MAX_WAIT)
    sticky: str | None = None
    alpha: float = ALPHA
    compare: float | None = None
    min_agreement: float = MIN_AGREEMENT

    def __post_init__(self) -> None:
        """Raise UsageError if a value is out of its range."""
        check_steps(self.steps)
        if self.sticky is not None:
            parse_sticky(self.sticky)
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha is {self.alpha:g}, and not above 0 and below 1")
        if self.min_requests < 1:
            raise UsageError(f"a step of {self.min_requests} requests", tip="a step needs at least 1 request")
        check_times(self.interval_s, self.max_wait_s)
        check_agreement(self.min_agreement)
        if self.compare is not None:
            check_sample(self.compare)

    @classmethod
    def of(cls, spec: RolloutSpec, given: Mapping[str, Any] | None = None) -> Canary:
        """Return the canary of a spec, with values that were given for this rollout in place of the spec's."""
        values = {
            "steps": tuple(spec.steps),
            "interval_s": parse_duration(spec.interval),
            "min_requests": spec.min_requests,
            "max_wait_s": parse_duration(spec.max_wait),
            "sticky": spec.sticky,
            "alpha": spec.alpha,
            "compare": parse_sample(spec.compare) if spec.compare else None,
            "min_agreement": spec.min_agreement,
        }
        return cls(**{**values, **(given or {})})

    @property
    def shares(self) -> tuple[int, ...]:
        """The steps in ten-thousandths."""
        return tuple(ten_thousandths(step) for step in self.steps)

    @property
    def compared_part(self) -> int:
        """Which part of its requests the old version gets too, in ten-thousandths."""
        return ten_thousandths(self.compare or 0)

    @property
    def sticky_key(self) -> StickyKey | None:
        """The sticky key; None if each request is routed by itself."""
        return parse_sticky(self.sticky) if self.sticky else None


def try_timeout_s(p99_ms: float | None, response_timeout_s: float) -> float:
    """Return after how many seconds a request is given up on the canary and repeated on the stable version.

    Args:
        p99_ms: latency limit of the version's service level, in milliseconds; None if it has none.
        response_timeout_s: TorchServe's response timeout of the version, in seconds.
    """
    half = response_timeout_s / 2
    return half if p99_ms is None else min(half, max(_SHORTEST_TRY_S, _TRY_PER_LIMIT * p99_ms / 1000))
