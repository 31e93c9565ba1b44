"""What a server's counters say about a version under its users' load, and the verdict on it.

TorchServe counts requests that name no version under the version ``default``, whichever answers; it counts errors for
the whole server, and only over REST. So errors are told from three sides: replies of 500 and above since the switch,
less those that came before it at the same rate; the tracebacks that the version's own workers print; and what our
handlers count themselves, over REST and gRPC alike, by version. Replies of 400 to 499 may be the fault of who asks:
they count only where their share has risen sharply against the version before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from marsmith.client.metrics import CounterSample as Line
from marsmith.client.metrics import parse_exposition

# Fewer answers than these make no latency.
FEWEST_PROBES = 5
FEWEST_REQUESTS = 20
# A difference below this is the noise of a busy machine, however large the ratio.
SLACK_MS = 25.0
# So unlikely must a rise be by chance: the watch looks some fifty times, at numbers that grow.
_CHANCE = 1e-4
# Until then a few answers are no sample.
_FIRST_S = 1.0

_USERS = "default"


@dataclass(frozen=True)
class Items:
    """What the handler of one version counts itself, if it is one of ours.

    Attributes:
        errors: replies of 400 and above, over REST and gRPC.
        failures: those of 500 and above among them; handlers built before there was this count have none.
    """

    errors: float = 0.0
    failures: float = 0.0


@dataclass(frozen=True)
class Sample:
    """The counters at one moment.

    Attributes:
        at_s: when, on a clock that only goes forward, in seconds.
        requests: of the model, those that named no version.
        latency_us: sum of the latencies of those of them that came over REST, in microseconds.
        server_errors: replies of 500 and above over REST, of every model.
        client_errors: replies of 400 to 499 over REST, of every model and API.
        tracebacks: exceptions that the version's workers have printed.
        items: by version, those whose handler counts.
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
    """What happened between two samples while ``version`` was the default; None: while none was."""

    first: Sample
    last: Sample
    version: str | None = None

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.last.at_s - self.first.at_s

    @property
    def reports(self) -> bool:
        """Whether the version's handler counts its items."""
        return self.version in self.last.items

    @property
    def requests(self) -> float:
        """How many requests of users TorchServe has counted."""
        return max(0.0, self.last.requests - self.first.requests)

    @property
    def items(self) -> Items:
        """What the version's handler has counted."""
        first, last = (sample.items.get(self.version or "", Items()) for sample in (self.first, self.last))
        return Items(max(0.0, last.errors - first.errors), max(0.0, last.failures - first.failures))

    @property
    def answers(self) -> float:
        """How many answers users got, at least: requests that name the version are in the handler's count alone."""
        return max(self.requests, self.items.errors)

    @property
    def failures(self) -> float:
        """How many requests failed, at least: one may be in several of these counts."""
        errors = self.last.server_errors - self.first.server_errors
        return max(0.0, errors, float(self.last.tracebacks - self.first.tracebacks), self.items.failures)

    @property
    def refusals(self) -> float:
        """How many requests were told that they are wrong: by this version, or else over REST by the whole server."""
        if self.reports:
            return self.items.errors - self.items.failures
        return max(0.0, self.last.client_errors - self.first.client_errors)

    @property
    def refused_share(self) -> float:
        """Share of the answers that were refusals, 0 to 1."""
        return min(1.0, self.refusals / self.answers) if self.answers else 0.0

    @property
    def mean_latency_ms(self) -> float | None:
        """Mean latency of users' requests; None where there were too few, or none over REST."""
        spent = self.last.latency_us - self.first.latency_us
        return spent / 1000 / self.requests if self.requests >= FEWEST_REQUESTS and spent > 0 else None


@dataclass(frozen=True)
class RolloutLimits:
    """What a new version may cost.

    Attributes:
        max_error_rate: largest share of requests that may fail beyond those that failed before, 0 to 1.
        max_latency_ratio: how many times the old version's latency its own may be.
        max_4xx_rise: by how much the share of requests that are answered 400 to 499 may grow, 0 to 1.
    """

    max_error_rate: float = 0.01
    max_latency_ratio: float = 2.0
    max_4xx_rise: float = 0.1


def read_counters(text: str, model: str) -> Sample:
    """Read the text of the metrics API into a sample without a time and without tracebacks.

    Raises:
        FormatError: it does not follow the format.
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
    """Return what our handlers of a model count, by version."""
    own = [line for line in lines if line.labels.get("ModelName") == model and line.name.startswith("marsmith_")]

    def count(name: str, version: str) -> float:
        return sum(line.value for line in own if line.name == name and line.labels["ModelVersion"] == version)

    # A handler that has only given good answers has counted batches, and no errors.
    return {
        version: Items(count("marsmith_item_errors_total", version), count("marsmith_item_failures_total", version))
        for version in {line.labels.get("ModelVersion") for line in own}
        if version is not None
    }


def verdict(before: Window, after: Window, limits: RolloutLimits) -> str | None:
    """Return in words why the new version must not stay, by the requests of its users; None where it may."""
    return (
        _too_many_failures(before, after, limits)
        or _too_many_refusals(before, after, limits)
        or slower("the mean latency of users' requests", before.mean_latency_ms, after.mean_latency_ms, limits)
    )


def probes_slower(before: Sequence[float], after: Sequence[float], limits: RolloutLimits) -> str | None:
    """Compare two sets of latencies of the same requests, in milliseconds; None where the later ones are no slower."""
    if min(len(before), len(after)) < FEWEST_PROBES:
        return None
    return slower("the median latency of its examples", median(before), median(after), limits)


def slower(what: str, before_ms: float | None, after_ms: float | None, limits: RolloutLimits) -> str | None:
    """Say that a latency has grown beyond its limit; None where it has not, or one of the two is unknown."""
    if before_ms is None or after_ms is None:
        return None
    if after_ms <= max(before_ms * limits.max_latency_ratio, before_ms + SLACK_MS):
        return None
    ratio = f"{after_ms / before_ms:.1f} times" if before_ms else "more than"
    return f"{what} is {after_ms:.1f} ms, {ratio} the old version's {before_ms:.1f} ms"


def chance_of_rise(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return how likely so many hits come after by chance alone, if hits were as frequent before (Fisher's exact test).

    Args:
        before: hits, and answers in all.
        after: the same of the time after.
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
    """Compare failures with those to be expected from the time before; random ups and downs are no sign."""
    rate = before.failures / before.seconds if before.seconds > 0 else 0.0
    expected = rate * after.seconds
    excess = after.failures - expected
    if excess <= max(limits.max_error_rate * after.answers, 2 * math.sqrt(expected)):
        return None
    usual = f", where {expected:.1f} were usual" if expected else ""
    return f"{after.failures:.0f} of {after.answers:.0f} requests failed within {after.seconds:.1f} s{usual}"


def _too_many_refusals(before: Window, after: Window, limits: RolloutLimits) -> str | None:
    """Tell a version that refuses what the old one answered from users who send what no version would answer.

    Users' wrong requests come as often as before; a rise must be large and not chance. The first few answers tell
    nothing: a user's wrong requests come one after the other, and the handler's count is seen before the frontend's. If
    hardly anybody asked the old version, there is nothing to compare with, and then only a version that refuses
    everybody fails.
    """
    rise = after.refused_share - before.refused_share
    if rise <= limits.max_4xx_rise or (after.answers < FEWEST_REQUESTS and after.seconds < _FIRST_S):
        return None
    compared = (before.refusals, before.answers), (after.refusals, after.answers)
    refuses_all = after.refused_share == 1 and after.answers >= FEWEST_REQUESTS > before.answers
    if chance_of_rise(*compared) >= _CHANCE and not refuses_all:
        return None
    usual = f", where the old version answered so {before.refused_share:.0%}" if before.answers else ""
    return (
        f"{after.refusals:.0f} of {after.answers:.0f} requests ({after.refused_share:.0%}) were answered with a status"
        f" of 400 to 499 within {after.seconds:.1f} s{usual}"
    )
