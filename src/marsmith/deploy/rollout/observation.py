"""Counters of a server, and the verdict on a version by them.

TorchServe counts requests that name no version under the version ``default``, whichever version answers. It counts
errors for the whole server, and only over REST. Failures are therefore counted in three ways: replies of 500 and above
since the switch, less the rate before it; tracebacks that the version's workers print; and the error counts of our
handlers by version, over REST and gRPC. Replies of 400 to 499 may be errors of users. They count only if their share
has risen sharply against the version before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from marsmith.client.metrics import CounterSample as Line
from marsmith.client.metrics import parse_exposition

# A mean latency needs at least this many answers.
FEWEST_PROBES = 5
FEWEST_REQUESTS = 20
# A smaller difference is noise of a busy machine, however large the ratio.
SLACK_MS = 25.0
# Significance level of a rise. It is small because the watch tests some fifty times, with growing numbers.
_CHANCE = 1e-4
# Fewer answers are not a sample.
_FIRST_S = 1.0

_USERS = "default"


@dataclass(frozen=True)
class Items:
    """Counts of the handler of one version, if it is one of ours.

    Attributes:
        errors: replies of 400 and above, over REST and gRPC.
        failures: replies of 500 and above among them. Handlers built before this count was added have none.
    """

    errors: float = 0.0
    failures: float = 0.0


@dataclass(frozen=True)
class Sample:
    """The counters at one moment.

    Attributes:
        at_s: time on a monotonic clock, in seconds.
        requests: requests to the model that named no version.
        latency_us: sum of the latencies of those requests over REST, in microseconds.
        server_errors: replies of 500 and above over REST, of every model.
        client_errors: replies of 400 to 499 over REST, of every model and API.
        tracebacks: number of exceptions that the version's workers have printed.
        items: counts of the handlers by version, for handlers that count.
    """

    at_s: float
    requests: float = 0.0
    latency_us: float = 0.0
    server_errors: float = 0.0
    client_errors: float = 0.0
    tracebacks: int = 0
    items: Mapping[str, Items] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """The change between two samples while ``version`` was the default; None if there was no default version."""

    first: Sample
    last: Sample
    version: str | None = None

    @property
    def seconds(self) -> float:
        """Duration, in seconds."""
        return self.last.at_s - self.first.at_s

    @property
    def reports(self) -> bool:
        """Whether the version's handler counts its items."""
        return self.version in self.last.items

    @property
    def requests(self) -> float:
        """Number of users' requests that TorchServe has counted."""
        return max(0.0, self.last.requests - self.first.requests)

    @property
    def items(self) -> Items:
        """Counts of the version's handler."""
        first, last = (sample.items.get(self.version or "", Items()) for sample in (self.first, self.last))
        return Items(max(0.0, last.errors - first.errors), max(0.0, last.failures - first.failures))

    @property
    def answers(self) -> float:
        """Lower bound of the number of answers: only the handler counts requests that name the version."""
        return max(self.requests, self.items.errors)

    @property
    def failures(self) -> float:
        """Lower bound of the number of failed requests: the counts overlap."""
        errors = self.last.server_errors - self.first.server_errors
        return max(0.0, errors, float(self.last.tracebacks - self.first.tracebacks), self.items.failures)

    @property
    def refusals(self) -> float:
        """Number of requests refused as wrong.

        Counted for this version if its handler counts, else over REST for the whole server.
        """
        if self.reports:
            return self.items.errors - self.items.failures
        return max(0.0, self.last.client_errors - self.first.client_errors)

    @property
    def refused_share(self) -> float:
        """Share of refusals in the answers, 0 to 1."""
        return min(1.0, self.refusals / self.answers) if self.answers else 0.0

    @property
    def mean_latency_ms(self) -> float | None:
        """Mean latency of users' requests, in milliseconds; None if there were too few, or none over REST."""
        spent = self.last.latency_us - self.first.latency_us
        return spent / 1000 / self.requests if self.requests >= FEWEST_REQUESTS and spent > 0 else None


@dataclass(frozen=True)
class RolloutLimits:
    """Limits that a new version must keep.

    Attributes:
        max_error_rate: maximum share of requests that may fail beyond the share before, 0 to 1.
        max_latency_ratio: maximum ratio of its latency to that of the old version.
        max_4xx_rise: maximum rise of the share of replies of 400 to 499, 0 to 1.
    """

    max_error_rate: float = 0.01
    max_latency_ratio: float = 2.0
    max_4xx_rise: float = 0.1


def read_counters(text: str, model: str) -> Sample:
    """Parse the text of the metrics API into a sample without a time and without tracebacks.

    Raises:
        FormatError: the text does not follow the format.
    """
    lines = parse_exposition(text)

    def users(name: str) -> float:
        wanted = {"model_name": model, "model_version": _USERS}
        return sum(line.value for line in lines if line.name == name and wanted.items() <= line.labels.items())

    def host(name: str) -> float:
        return sum(line.value for line in lines if line.name == name)

    return Sample(
        at_s=0.0,
        requests=users("ts_inference_requests_total"),
        latency_us=users("ts_inference_latency_microseconds"),
        server_errors=host("Requests5XX"),
        client_errors=host("Requests4XX"),
        items=_items(lines, model),
    )


def _items(lines: Sequence[Line], model: str) -> dict[str, Items]:
    """Return the counts of our handlers of a model, by version."""
    own = [line for line in lines if line.labels.get("ModelName") == model and line.name.startswith("marsmith_")]

    def count(name: str, version: str) -> float:
        return sum(line.value for line in own if line.name == name and line.labels["ModelVersion"] == version)

    # A handler that has given only good answers has counted batches, but no errors.
    return {
        version: Items(count("marsmith_item_errors_total", version), count("marsmith_item_failures_total", version))
        for version in {line.labels.get("ModelVersion") for line in own}
        if version is not None
    }


def verdict(before: Window, after: Window, limits: RolloutLimits) -> str | None:
    """Return why the new version must not stay, judged by its users' requests; None if it may stay."""
    return (
        _too_many_failures(before, after, limits)
        or _too_many_refusals(before, after, limits)
        or slower("the mean latency of users' requests", before.mean_latency_ms, after.mean_latency_ms, limits)
    )


def probes_slower(before: Sequence[float], after: Sequence[float], limits: RolloutLimits) -> str | None:
    """Compare two lists of latencies of the same requests, in milliseconds. None if the later ones are not slower."""
    if min(len(before), len(after)) < FEWEST_PROBES:
        return None
    return slower("the median latency of its examples", median(before), median(after), limits)


def slower(what: str, before_ms: float | None, after_ms: float | None, limits: RolloutLimits) -> str | None:
    """Describe a latency that has grown beyond its limit. None if it has not, or if a latency is unknown."""
    if before_ms is None or after_ms is None:
        return None
    if after_ms <= max(before_ms * limits.max_latency_ratio, before_ms + SLACK_MS):
        return None
    ratio = f"{after_ms / before_ms:.1f} times" if before_ms else "more than"
    return f"{what} is {after_ms:.1f} ms, {ratio} the old version's {before_ms:.1f} ms"


def chance_of_rise(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the probability that so many hits come after by chance, at the same rate as before (Fisher's exact test).

    Args:
        before: hits and answers before.
        after: hits and answers after.
    """
    (b, m), (a, n) = ((round(hits), round(max(hits, count))) for hits, count in (before, after))
    hits = a + b
    likely = 0.0
    for k in range(a, min(hits, n) + 1):
        term = math.exp(_log_choose(n, k) + _log_choose(m, hits - k) - _log_choose(n + m, hits))
        likely += term
        if term < likely * 1e-9:
            break
    return min(1.0, likely)


def _log_choose(n: int, k: int) -> float:
    if not 0 <= k <= n:
        return -math.inf
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _too_many_failures(before: Window, after: Window, limits: RolloutLimits) -> str | None:
    """Compare failures with the number expected from the time before. Random variation is not a failure."""
    rate = before.failures / before.seconds if before.seconds > 0 else 0.0
    expected = rate * after.seconds
    excess = after.failures - expected
    if excess <= max(limits.max_error_rate * after.answers, 2 * math.sqrt(expected)):
        return None
    usual = f", compared with {expected:.1f} expected" if expected else ""
    return f"{after.failures:.0f} of {after.answers:.0f} requests failed within {after.seconds:.1f} s{usual}"


def _too_many_refusals(before: Window, after: Window, limits: RolloutLimits) -> str | None:
    """Detect a version that refuses requests that the old one answered, in contrast to wrong requests of users.

    Wrong requests of users come as often as before, so a rise must be large and significant. The first few answers are
    not considered: wrong requests of one user come in a row, and the handler's count arrives before the frontend's. If
    the old version had hardly any requests, there is nothing to compare with. Then only a version that refuses every
    request fails.
    """
    rise = after.refused_share - before.refused_share
    if rise <= limits.max_4xx_rise or (after.answers < FEWEST_REQUESTS and after.seconds < _FIRST_S):
        return None
    compared = (before.refusals, before.answers), (after.refusals, after.answers)
    refuses_all = after.refused_share == 1 and after.answers >= FEWEST_REQUESTS > before.answers
    if chance_of_rise(*compared) >= _CHANCE and not refuses_all:
        return None
    usual = f", compared with {before.refused_share:.0%} from the old version" if before.answers else ""
    return (
        f"{after.refusals:.0f} of {after.answers:.0f} requests ({after.refused_share:.0%}) were answered with a status"
        f" of 400 to 499 within {after.seconds:.1f} s{usual}"
    )
