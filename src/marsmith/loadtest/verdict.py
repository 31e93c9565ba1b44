"""Whether a measurement holds what was asked for, line by line, and so that nobody has to guess from an exit code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from marsmith.loadtest.measurement import Measurement

# Of the requests that came, so many must have been answered at the rate at which they came.
LEAST_SHARE_OF_RATE = 0.95


@dataclass(frozen=True)
class VerdictLine:
    """One thing that was asked for.

    Attributes:
        what: ``p99Ms``, ``requestsPerSecond`` or ``failed``.
        limit: what was asked for.
        measured: what came of it; NaN where nothing did.
        held: whether the one meets the other.
    """

    what: str
    limit: float
    measured: float
    held: bool

    def __str__(self) -> str:
        """Say it as a line: what was measured, the limit, the verdict."""
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
        """Return it as JSON."""
        measured = None if math.isnan(self.measured) else round(self.measured, 3)
        return {"what": self.what, "limit": self.limit, "measured": measured, "held": self.held}


@dataclass(frozen=True)
class Verdict:
    """What a measurement holds of what was asked for.

    Attributes:
        checks: each thing that was asked for; a failed request is never asked for.
        targets: whether there was a limit or a rate to hold at all.
    """

    checks: tuple[VerdictLine, ...]
    targets: bool

    @property
    def held(self) -> bool:
        """Whether all of it is held."""
        return all(check.held for check in self.checks)

    def lines(self) -> list[str]:
        """Say it in words, one line for each thing that was judged."""
        told = [str(check) for check in self.checks if self.targets or not check.held]
        return told or ["measured and not judged: neither a limit nor a rate was asked for"]

    def record(self) -> dict[str, Any]:
        """Return it as JSON; ``held`` is null where there was nothing to hold and nothing failed."""
        held = self.held if self.targets or not self.held else None
        return {"held": held, "checks": [check.record() for check in self.checks]}


def judge(
    measured: Measurement, *, p99_ms: float | None = None, rps: float | None = None, seconds: float = math.inf
) -> Verdict:
    """Judge a measurement.

    Args:
        measured: what came of a load.
        p99_ms: limit of the 99th percentile, in milliseconds; None: there is none.
        rps: rate at which requests came, in requests per second; None: they waited for each other.
        seconds: for how long they came.
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
    """Tell whether requests were answered as fast as they came.

    The last are answered after the end, by about the median of all. Where answers fall behind the requests, they end
    later than that: the median is only half of what the last one waits.
    """
    if not measured.requests or math.isnan(measured.quantiles_ms[0.5]):
        return False
    took_s = max(seconds, measured.seconds - measured.quantiles_ms[0.5] / 1000)
    return (measured.requests - measured.failed) / took_s >= LEAST_SHARE_OF_RATE * measured.requests / seconds
