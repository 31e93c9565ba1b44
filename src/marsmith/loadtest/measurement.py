"""Statistics of a run: rates, percentiles, errors, and whether the driver kept up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from marsmith.loadtest.connection import OK
from marsmith.loadtest.driver import LatencySample, LoadRun

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
# Above these limits the figures describe the driver, not the server.
DRIVER_CPU_LIMIT = 0.7
DRIVER_LAG_LIMIT_MS = 5.0


@dataclass(frozen=True)
class Measurement:
    """Result of one run. Latencies are in milliseconds, of good answers only.

    Attributes:
        requests: number of requests sent, whether they succeeded or failed.
        errors: number of failures by verdict.
        seconds: duration that rates refer to.
        requests_per_second: good answers per second, from the end of the warm-up to the last answer. Answers after the
            warm-up count even if their request was due before its end: the server still worked on them.
        mean_ms: mean latency. NaN without a good answer, like the next ones.
        quantiles_ms: latency by quantile, 0 to 1.
        max_ms: largest latency.
        lag_p99_ms: 99th percentile of how late the driver sent a request.
        driver_cpu: share of one core that the driver used, 0 to 1.
        histogram: ascending buckets, each with its upper bound in ms and its number of good answers.
    """

    requests: int
    errors: dict[str, int]
    seconds: float
    requests_per_second: float
    mean_ms: float
    quantiles_ms: dict[float, float]
    max_ms: float
    lag_p99_ms: float
    driver_cpu: float
    histogram: tuple[tuple[float, int], ...] = field(default=(), repr=False)

    @property
    def p99_ms(self) -> float:
        """99th percentile of the latency, in milliseconds."""
        return self.quantiles_ms[0.99]

    @property
    def failed(self) -> int:
        """Number of requests without a good answer."""
        return sum(self.errors.values())

    @property
    def driver_kept_up(self) -> bool:
        """Whether the driver was fast enough for the figures to describe the server."""
        return self.driver_cpu <= DRIVER_CPU_LIMIT and self.lag_p99_ms <= DRIVER_LAG_LIMIT_MS

    def holds(self, p99_ms: float) -> bool:
        """Return whether every request succeeded and the 99th percentile is within ``p99_ms``."""
        return self.requests > 0 and not self.failed and self.p99_ms <= p99_ms

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "requests": self.requests,
            "errors": self.errors,
            "seconds": round(self.seconds, 3),
            "requestsPerSecond": round(self.requests_per_second, 2),
            "latencyMs": {
                "mean": _rounded(self.mean_ms),
                **{f"p{100 * q:g}": _rounded(value) for q, value in self.quantiles_ms.items()},
                "max": _rounded(self.max_ms),
            },
            "driver": {
                "lagP99Ms": _rounded(self.lag_p99_ms),
                "cpu": round(self.driver_cpu, 3),
                "keptUp": self.driver_kept_up,
            },
            "histogram": [{"upToMs": _rounded(bound), "requests": number} for bound, number in self.histogram],
        }


def measure(drive: LoadRun, *, skip_s: float = 0.0) -> Measurement:
    """Compute the statistics of a run, without the requests that were due in its first ``skip_s`` seconds."""
    answered = sum(sample.verdict == OK and sample.done >= skip_s for sample in drive.samples)
    samples = [sample for sample in drive.samples if sample.due >= skip_s]
    good = sorted(sample.latency_s * 1000 for sample in samples if sample.verdict == OK)
    errors = Counter(sample.verdict for sample in samples if sample.verdict != OK)
    lag = sorted((sample.sent - sample.due) * 1000 for sample in samples)
    seconds = max(drive.seconds - skip_s, 1e-9)
    return Measurement(
        requests=len(samples),
        errors=dict(errors.most_common()),
        seconds=seconds,
        requests_per_second=answered / _span(samples, skip_s, seconds),
        mean_ms=sum(good) / len(good) if good else math.nan,
        quantiles_ms={q: quantile(good, q) for q in QUANTILES},
        max_ms=good[-1] if good else math.nan,
        lag_p99_ms=quantile(lag, 0.99) if lag else 0.0,
        driver_cpu=drive.driver_cpu,
        histogram=histogram(good),
    )


def _span(samples: Sequence[LatencySample], skip_s: float, seconds: float) -> float:
    """Return the time from the end of the warm-up to the last answer, in seconds."""
    last = max((sample.done for sample in samples), default=0.0)
    return max(last - skip_s, 1e-9) if samples else seconds


def quantile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed (nearest rank).

    NaN if there are none.
    """
    if not ascending:
        return math.nan
    return ascending[min(len(ascending) - 1, max(0, math.ceil(share * len(ascending)) - 1))]


def histogram(ascending: Sequence[float], buckets_per_doubling: int = 2) -> tuple[tuple[float, int], ...]:
    """Count latencies in buckets with geometrically growing bounds, from the first bucket in use to the last."""
    counts = Counter(math.ceil(buckets_per_doubling * math.log2(max(value, 1e-3))) for value in ascending)
    if not counts:
        return ()
    steps = range(min(counts), max(counts) + 1)
    return tuple((2 ** (step / buckets_per_doubling), counts.get(step, 0)) for step in steps)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)
