"""Block ``rollout:`` of a model spec: how a new version gets its traffic.

The values are checked here for every caller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from marsmith.errors import UsageError
from marsmith.strict_yaml import Strict

Strategy = Literal["switch", "canary", "shadow"]

STEPS = (1.0, 5.0, 25.0, 50.0)
INTERVAL = "2m"
MIN_REQUESTS = 50
MAX_WAIT = "1h"
ALPHA = 0.01
SAMPLE = "10%"
SHADOW_TIME = "30m"
MIN_AGREEMENT = 0.99

# Shares are counted in ten-thousandths, the smallest part that the front can be given.
WHOLE = 10_000
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)")
_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
# Characters that need no quoting in a header, a cookie, JSON and Envoy's configuration.
_STICKY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OWN_HEADERS = "x-marsmith-"


class StickyKey(NamedTuple):
    """What a user is recognised by.

    Attributes:
        kind: ``header`` or ``cookie``.
        name: its name; that of a header is in lower case.
    """

    kind: Literal["header", "cookie"]
    name: str


def parse_sticky(text: str) -> StickyKey:
    """Parse ``header:NAME`` or ``cookie:NAME``.

    Raises:
        UsageError: the text is neither of them, or the name has other characters than letters, digits, '-' and '_'.
    """
    kind, _, name = text.partition(":")
    if kind not in {"header", "cookie"}:
        raise UsageError(
            f"{text!r} is not a sticky key", tip="write header:NAME or cookie:NAME, as in header:x-user-id"
        )
    if not _STICKY_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not the name of a {kind}", tip="use letters, digits, '-' and '_'")
    if kind == "cookie":
        return StickyKey("cookie", name)
    if name.lower().startswith(_OWN_HEADERS):
        raise UsageError(f"the front removes the header {name} from requests", tip="name a header of your clients")
    return StickyKey("header", name.lower())


def parse_duration(text: str) -> float:
    """Parse ``30s``, ``2m`` or ``1.5h``, and return seconds.

    Raises:
        UsageError: the text is not a duration, or it is 0.
    """
    match = _DURATION.fullmatch(text)
    if not match or not float(match[1]):
        raise UsageError(f"{text!r} is not a duration above 0", tip="write a number with its unit: 30s, 2m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def parse_sample(text: str) -> float:
    """Parse ``10%`` or ``0.5%``, and return percent.

    Raises:
        UsageError: the text is not a percentage above 0 and at most 100, with at most two decimals.
    """
    match = _PERCENT.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is not a percentage", tip="write a number with its sign: 10%, 0.5% or 100%")
    return check_sample(float(match[1]))


def check_sample(percent: float) -> float:
    """Return the sample; raises UsageError unless it is above 0 and at most 100 percent, in hundredths."""
    if not 0 < percent <= 100:
        raise UsageError(f"a sample of {percent:g}% is not above 0% and at most 100%", tip="for example 10%")
    if abs(percent * 100 - round(percent * 100)) > 1e-9:
        raise UsageError(f"a sample of {percent:g}% has more than two decimals", tip="the smallest sample is 0.01%")
    return percent


def check_agreement(agreement: float) -> float:
    """Return the minimum agreement; raises UsageError unless it is above 0 and below 1."""
    if not 0 < agreement < 1:
        raise UsageError(
            f"a minimum agreement of {agreement:g} is not above 0 and below 1",
            tip="for example 0.99: no number of requests proves that all replies agree",
        )
    return agreement


def check_steps(steps: Sequence[float]) -> tuple[float, ...]:
    """Return the steps, in percent; raises UsageError unless they rise, above 0 and below 100, in hundredths."""
    text = ", ".join(f"{step:g}" for step in steps)
    if not steps or not all(0 < step < 100 for step in steps):
        raise UsageError(f"the steps {text} are not above 0 and below 100 percent", tip="after the last step it is 100")
    if any(after <= before for before, after in pairwise(steps)):
        raise UsageError(f"the steps {text} do not rise", tip="each is larger than the one before: 1, 5, 25, 50")
    if any(abs(step * 100 - round(step * 100)) > 1e-9 for step in steps):
        raise UsageError(f"the steps {text} have more than two decimals", tip="the smallest share is 0.01 percent")
    return tuple(steps)


def check_times(interval_s: float, max_wait_s: float) -> None:
    """Raise UsageError unless the time at each share, in seconds, is above 0 and at most the maximum wait."""
    if not 0 < interval_s <= max_wait_s:
        raise UsageError(
            f"an interval of {interval_s:g} s does not go with a maximum wait of {max_wait_s:g} s",
            tip="the interval is above 0 and at most the maximum wait",
        )


def ten_thousandths(percent: float) -> int:
    """Return a share in percent as a whole number of ten-thousandths."""
    return round(percent * WHOLE / 100)


def _as_value_error(check: Any) -> Any:
    """Return a validator that leaves a value as it is, for a check that raises UsageError."""

    def checked(value: Any) -> Any:
        try:
            check(value)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.tip}") from None
        return value

    return checked


Duration = Annotated[str, AfterValidator(_as_value_error(parse_duration))]


class RolloutSpec(Strict):
    """How a deploy gives the version its traffic; options of `marsmith deploy` override it.

    Attributes:
        strategy: ``switch``: all requests at once; ``canary``: share by share; ``shadow``: copies of requests, whose
            replies are compared and thrown away.
        steps: shares of the canary in percent, rising.
        interval: minimum time at each share.
        min_requests: minimum number of answers of the canary at each share.
        max_wait: time at one share after which a canary with too few requests is inconclusive.
        sticky: what a user is recognised by, so that all requests of a user go to one version; none: each request by
            itself.
        alpha: probability, above 0 and below 1, that a version as good as the old one goes back.
        sample: which part of the requests a shadow gets, in percent, as in ``10%``.
        time: for how long a shadow gets them; ``for`` in the file.
        min_agreement: agreement of the replies, above 0 and below 1, at which a canary follows the shadow, and below
            which a canary goes back.
        compare: percentage of the canary's requests, as in ``10%``, that the old version gets too, so that replies that
            differ are evidence; none: replies are not compared.
        then: what follows the shadow; none: it is taken off again.
    """

    strategy: Strategy = "switch"
    steps: Annotated[list[float], AfterValidator(_as_value_error(check_steps))] = Field(default=list(STEPS))
    interval: Duration = INTERVAL
    min_requests: int = Field(default=MIN_REQUESTS, ge=1)
    max_wait: Duration = MAX_WAIT
    sticky: Annotated[str, AfterValidator(_as_value_error(parse_sticky))] | None = None
    alpha: float = Field(default=ALPHA, gt=0, lt=1)
    sample: Annotated[str, AfterValidator(_as_value_error(parse_sample))] = SAMPLE
    time: Duration = Field(default=SHADOW_TIME, alias="for")
    min_agreement: Annotated[float, AfterValidator(_as_value_error(check_agreement))] = MIN_AGREEMENT
    compare: Annotated[str, AfterValidator(_as_value_error(parse_sample))] | None = None
    then: Literal["canary"] | None = None

    @model_validator(mode="after")
    def _times(self) -> Self:
        _as_value_error(lambda spec: check_times(parse_duration(spec.interval), parse_duration(spec.max_wait)))(self)
        return self
