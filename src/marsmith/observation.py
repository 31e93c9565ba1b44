"""What a server's counters say about a version under its users' load, and the verdict on it.

TorchServe counts requests that name no version under the version ``default``, whichever answers; it counts errors for
the whole server, and only over REST. So errors are told from two sides: replies of 500 and above since the switch, less
those that came before it at the same rate, and the tracebacks that the version's own workers print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Fewer answers than these make no latency.
FEWEST_PROBES = 5
FEWEST_REQUESTS = 20
# A difference below this is the noise of a busy machine, however large the ratio.
SLACK_MS = 25.0

_LINE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)\{(?P<labels>.*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(?P<name>\w+)="(?P<value>(?:[^"\\]|\\.)*)"')
_USERS = "default"


@dataclass(frozen=True)
class Sample:
    """The counters at one moment.

    Attributes:
        at_s: when, on a clock that only goes forward, in seconds.
        requests: of the model, those that named no version.
        latency_us: sum of the latencies of those of them that came over REST, in microseconds.
        server_errors: replies of 500 and above over REST, of every model.
        tracebacks: exceptions that the version's workers have printed.
    """

    at_s: float
    requests: float
    latency_us: float
    server_errors: float
    tracebacks: int


@dataclass(frozen=True)
class Window:
    """What happened between two samples."""

    first: Sample
    last: Sample

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.last.at_s - self.first.at_s

    @property
    def requests(self) -> float:
        """How many requests of users came."""
        return max(0.0, self.last.requests - self.first.requests)

    @property
    def failures(self) -> float:
        """How many requests failed, at least: an exception over REST is in both counts, over gRPC in one."""
        errors = self.last.server_errors - self.first.server_errors
        return max(0.0, errors, float(self.last.tracebacks - self.first.tracebacks))

    @property
    def mean_latency_ms(self) -> float | None:
        """Mean latency of users' requests; None where there were too few, or none over REST."""
        spent = self.last.latency_us - self.first.latency_us
        return spent / 1000 / self.requests if self.requests >= FEWEST_REQUESTS and spent > 0 else None


@dataclass(frozen=True)
class Limits:
    """What a new version may cost.

    Attributes:
        max_error_rate: largest share of requests that may fail beyond those that failed before, 0 to 1.
        max_latency_ratio: how many times the old version's latency its own may be.
    """

    max_error_rate: float = 0.01
    max_latency_ratio: float = 2.0


def read_counters(text: str, model: str) -> tuple[float, float, float]:
    """Read the text of the metrics API: requests of ``model`` without a version, their latency, server errors."""
    found = {"ts_inference_requests_total": 0.0, "ts_inference_latency_microseconds": 0.0, "Requests5XX": 0.0}
    for match in filter(None, map(_LINE.fullmatch, text.splitlines())):
        labels = {label["name"]: label["value"] for label in _LABEL.finditer(match["labels"])}
        ours = labels.get("model_name") == model and labels.get("model_version") == _USERS
        if match["name"] in found and (ours or match["name"] == "Requests5XX"):
            found[match["name"]] += float(match["value"])
    requests, latency, errors = found.values()
    return requests, latency, errors


def verdict(before: Window, after: Window, limits: Limits) -> str | None:
    """Return in words why the new version must not stay, by the requests of its users; None where it may."""
    return _too_many_failures(before, after, limits) or slower(
        "the mean latency of users' requests", before.mean_latency_ms, after.mean_latency_ms, limits
    )


def probes_slower(before: Sequence[float], after: Sequence[float], limits: Limits) -> str | None:
    """Compare two sets of latencies of the same requests, in milliseconds; None where the later ones are no slower."""
    if min(len(before), len(after)) < FEWEST_PROBES:
        return None
    return slower("the median latency of its examples", median(before), median(after), limits)


def slower(what: str, before_ms: float | None, after_ms: float | None, limits: Limits) -> str | None:
    """Say that a latency has grown beyond its limit; None where it has not, or one of the two is unknown."""
    if before_ms is None or after_ms is None:
        return None
    if after_ms <= max(before_ms * limits.max_latency_ratio, before_ms + SLACK_MS):
        return None
    ratio = f"{after_ms / before_ms:.1f} times" if before_ms else "more than"
    return f"{what} is {after_ms:.1f} ms, {ratio} the old version's {before_ms:.1f} ms"


def _too_many_failures(before: Window, after: Window, limits: Limits) -> str | None:
    """Compare failures with those to be expected from the time before; random ups and downs are no sign."""
    rate = before.failures / before.seconds if before.seconds > 0 else 0.0
    expected = rate * after.seconds
    excess = after.failures - expected
    if excess <= max(limits.max_error_rate * after.requests, 2 * math.sqrt(expected)):
        return None
    usual = f", where {expected:.1f} were usual" if expected else ""
    return f"{after.failures:.0f} of {after.requests:.0f} requests failed within {after.seconds:.1f} s{usual}"
