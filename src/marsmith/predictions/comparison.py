"""The comparison of two versions, pair by pair, and what it has found so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from marsmith.predictions.compare import Difference, Tolerance, compare_replies
from marsmith.predictions.join import Joiner, Pair
from marsmith.predictions.log import Prediction
from marsmith.statistics import RateInterval, rate_interval

# A reply with a status of at least this is an error.
_ERROR = 400
# Latencies kept of each version: enough for a 99th percentile.
_MOST_LATENCIES = 20_000
# The interval after so many pairs is kept for the plot: two points for each doubling.
_POINT_RATIO = math.sqrt(2)

Compare = Callable[[Pair], Difference]


@dataclass(frozen=True)
class Latency:
    """Time of the handler for the batch of a request.

    Attributes:
        percentiles_ms: from the first to the 99th, in milliseconds; empty if no time was logged.
    """

    percentiles_ms: tuple[float, ...]

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> Latency:
        """Return the percentiles of some values."""
        ordered = sorted(values_ms)
        return cls(tuple(ordered[math.ceil(n * len(ordered) / 100) - 1] for n in range(1, 100)) if ordered else ())

    @property
    def p50_ms(self) -> float:
        """The median; NaN if no time was logged."""
        return self.percentiles_ms[49] if self.percentiles_ms else math.nan

    @property
    def p99_ms(self) -> float:
        """The 99th percentile; NaN if no time was logged."""
        return self.percentiles_ms[98] if self.percentiles_ms else math.nan

    def record(self) -> dict[str, float]:
        """Return it as a JSON object."""
        return {"p50_ms": self.p50_ms, "p99_ms": self.p99_ms}


@dataclass(frozen=True)
class Report:
    """What a comparison has found.

    Attributes:
        old: version that serves.
        new: version that is compared with it.
        pairs: requests that both versions have answered.
        inputs: different bodies among them.
        agreement: of the pairs in which neither version failed.
        flips: old class, new class and how often, most frequent first.
        largest: largest difference of two numbers; NaN if none were compared.
        largest_key: key of the request that it belongs to.
        failed: pairs in which only the old version failed, only the new one, and both.
        latency: of the old and the new version.
        alone: predictions of the old and the new version without a counterpart.
        damaged: lines that could not be read.
        dropped: lines that the workers have dropped.
        older_log: versions whose handlers write a log without keys, which joins by the body alone.
        points: pairs compared and the interval then, for a plot.
    """

    old: str
    new: str
    pairs: int
    inputs: int
    agreement: RateInterval
    flips: tuple[tuple[str, str, int], ...]
    largest: float
    largest_key: str
    failed: tuple[int, int, int]
    latency: tuple[Latency, Latency]
    alone: tuple[int, int]
    damaged: int
    dropped: int
    older_log: tuple[str, ...]
    points: tuple[RateInterval, ...]

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object; null for what is not known."""
        found = asdict(self)
        for name in ("flips", "points", "failed", "alone", "latency"):
            del found[name]
        found["agreement"]["rate"] = self.agreement.rate
        old, new, both = self.failed
        found |= {
            "failed": {"old": old, "new": new, "both": both},
            "alone": dict(zip(("old", "new"), self.alone, strict=True)),
            "latency": {name: one.record() for name, one in zip(("old", "new"), self.latency, strict=True)},
            "flips": [{"old": was, "new": now, "count": count} for was, now, count in self.flips],
        }
        return {name: _known(value) for name, value in found.items()}


class Comparison:
    """Joins and compares predictions of two versions as they come."""

    def __init__(
        self,
        old: str,
        new: str,
        *,
        compare: Compare | None = None,
        tolerance: Tolerance | None = None,
        alpha: float = 0.05,
    ) -> None:
        """Begin without predictions.

        Args:
            old: version that serves.
            new: version that is compared with it.
            compare: compares the replies of a pair; None: ``compare_replies`` with the tolerance.
            tolerance: None: the default one.
            alpha: largest probability that the interval of the agreement ever misses it.
        """
        limits = tolerance or Tolerance()
        self._old, self._new, self._alpha = old, new, alpha
        self._compare: Compare = compare or (lambda pair: compare_replies(pair, limits))
        self._joiner = Joiner(old, new)
        self._agreed = self._compared = self._pairs = 0
        self._failed = [0, 0, 0]
        self._flips: Counter[tuple[str, str]] = Counter()
        self._largest, self._largest_key = math.nan, ""
        self._latencies: dict[str, list[float]] = {old: [], new: []}
        self._inputs: set[str] = set()
        self._older: set[str] = set()
        self._dropped: dict[int, int] = {}
        self._points: list[RateInterval] = []
        self.damaged = 0

    def add(self, predictions: Iterable[Prediction]) -> list[tuple[Pair, Difference]]:
        """Add predictions; return the compared pairs that they complete, without those in which a version failed."""
        found = []
        for prediction in predictions:
            if prediction.version in self._latencies:
                self._note(prediction)
            pair = self._joiner.add(prediction)
            difference = self._judge(pair) if pair else None
            if pair and difference:
                found.append((pair, difference))
        return found

    def report(self) -> Report:
        """Return what has been found until now."""
        waiting, given_up = self._joiner.waiting, self._joiner.unmatched
        agreement = rate_interval(self._agreed, self._compared, self._alpha)
        return Report(
            old=self._old,
            new=self._new,
            pairs=self._pairs,
            inputs=len(self._inputs),
            agreement=agreement,
            flips=tuple((*classes, count) for classes, count in self._flips.most_common()),
            largest=self._largest,
            largest_key=self._largest_key,
            failed=(self._failed[0], self._failed[1], self._failed[2]),
            latency=(Latency.of(self._latencies[self._old]), Latency.of(self._latencies[self._new])),
            alone=(waiting[0] + given_up[0], waiting[1] + given_up[1]),
            damaged=self.damaged,
            dropped=sum(self._dropped.values()),
            older_log=tuple(sorted(self._older)),
            points=(*self._points, agreement),
        )

    def _note(self, prediction: Prediction) -> None:
        latencies = self._latencies[prediction.version]
        if not math.isnan(prediction.handler_ms) and len(latencies) < _MOST_LATENCIES:
            latencies.append(prediction.handler_ms)
        if prediction.schema == 1:
            self._older.add(prediction.version)
        self._dropped[prediction.worker] = max(self._dropped.get(prediction.worker, 0), prediction.dropped)

    def _judge(self, pair: Pair) -> Difference | None:
        self._pairs += 1
        self._inputs.add(pair.old.input_sha256[:16])
        old_failed, new_failed = pair.old.status >= _ERROR, pair.new.status >= _ERROR
        if old_failed or new_failed:
            self._failed[2 if old_failed and new_failed else int(new_failed)] += 1
            return None
        difference = self._compare(pair)
        self._compared += 1
        self._agreed += difference.agrees
        self._flips.update(difference.flips)
        if not math.isnan(difference.largest) and not difference.largest <= self._largest:
            self._largest, self._largest_key = difference.largest, pair.new.key
        if not self._points or self._compared >= self._points[-1].observations * _POINT_RATIO:
            self._points.append(rate_interval(self._agreed, self._compared, self._alpha))
        return difference


def _known(value: Any) -> Any:
    """Return null for what is not a number, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _known(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
