"""Verdict on a measurement: each limit with its result, for reports and exit codes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from marsmith.loadtest.measurement import Measurement

# This share of the requests must be answered at the rate at which they arrived.
LEAST_SHARE_OF_RATE = 0.95


@dataclass(frozen=True)
class VerdictLine:
    """The result of one limit.

    Attributes:
        what: ``p99Ms``, ``requestsPerSecond`` or ``failed``.
        limit: the limit.
        measured: the measured value; NaN if there is none.
        held: whether the measured value meets the limit.
    """

    what: str
    limit: float
    measured: float
    held: bool

    def __str__(self) -> str:
        """Return a line with the measured value, the limit and the verdict."""
        verdict = "held" if self.held else "not held"
        if self.what == "failed":
            nothing_came = not self.measured and not self.held
            return f"{'no request came' if nothing_came else f'{self.measured:.0f} requests failed'}: {verdict}"
        if math.isnan(self.measured):
            return f"no answer to measure {'p99' if self.what == 'p99Ms' else 'a rate'} with: {verdict}"
        if self.what == "p99Ms":
            return f"p99 {self.measured:.1f} {'<=' if self.held else '>'} {self.limit:g} ms: {verdict}"
        return f"{self.measured:.1f} of {self.limit:g} requests/s answered: {verdict}"

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        measured = None if math.isnan(self.measured) else round(self.measured, 3)
        return {"what": self.what, "limit": self.limit, "measured": measured, "held": self.held}


@dataclass(frozen=True)
class Verdict:
    """The verdict on a measurement.

    Attributes:
        checks: one line for each limit, and one for failed requests.
        targets: whether there is a limit or a rate to hold.
    """

    checks: tuple[VerdictLine, ...]
    targets: bool

    @property
    def held(self) -> bool:
        """Whether all checks are held."""
        return all(check.held for check in self.checks)

    def lines(self) -> list[str]:
        """Return one line of text for each check."""
        lines = [str(check) for check in self.checks if self.targets or not check.held]
        return lines or ["measured and not judged: neither a limit nor a rate was asked for"]

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object; ``held`` is null if there was no limit and nothing failed."""
        held = self.held if self.targets or not self.held else None
        return {"held": held, "checks": [check.record() for check in self.checks]}


def judge(
    measured: Measurement, *, p99_ms: float | None = None, rps: float | None = None, seconds: float = math.inf
) -> Verdict:
    """Judge a measurement.

    Args:
        measured: result of a load.
        p99_ms: limit of the 99th percentile, in milliseconds. None: no limit.
        rps: rate of the arrivals, in requests per second. None for a closed loop.
        seconds: duration of the arrivals, in seconds.
    """
    checks = [VerdictLine("failed", 0, measured.failed, not measured.failed and measured.requests > 0)]
    if p99_ms is not None:
        checks.insert(0, VerdictLine("p99Ms", p99_ms, measured.p99_ms, measured.p99_ms <= p99_ms))
    if rps is not None:
        checks.insert(
            -1, VerdictLine("requestsPerSecond", rps, measured.requests_per_second, _kept_up(measured, seconds))
        )
    return Verdict(tuple(checks), targets=p99_ms is not None or rps is not None)


def _kept_up(measured: Measurement, seconds: float) -> bool:
    """Return whether requests were answered as fast as they arrived.

    The last requests are answered after the end, about one median latency later. If the server falls behind, they end
    later still: the median is only half of the wait of the last one.
    """
    if not measured.requests or math.isnan(measured.quantiles_ms[0.5]):
        return False
    took_s = max(seconds, measured.seconds - measured.quantiles_ms[0.5] / 1000)
    return (measured.requests - measured.failed) / took_s >= LEAST_SHARE_OF_RATE * measured.requests / seconds
