"""Recording rules: how a model does against its service level, as series that alerts and dashboards read.

Of a model with a service level there are its budgets: the parts of its requests that may fail or be slow. Of every
model there is the part that failed, over the windows of the alerts: as the handlers report it, or as the front does,
whichever is worse. The front also sees what no handler does, such as a full queue, but only over REST. Nobody sees the
replies of a shadow, so they do not count. The part that is slow needs the front.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from marsmith.metric_names import ERRORS, FRONT_REPLIES, FRONT_SECONDS, REQUESTS, ROLLOUT_PHASE
from marsmith.monitoring.objectives import SLOW_BUDGET, Objective

# Every window of a burn rate alert, the shortest first.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
LONG_WINDOWS = ("1h", "6h", "1d", "3d")
ERROR_BUDGET = "model:marsmith_errors:budget"
SLOW_REQUESTS_BUDGET = "model:marsmith_slow:budget"
LATENCY_LIMIT = "model:marsmith_latency:limit_seconds"


@dataclass(frozen=True)
class Record:
    """A recording rule.

    Attributes:
        name: name of the series.
        expression: in PromQL; it may have several lines.
        labels: further labels of the series.
    """

    name: str
    expression: str
    labels: tuple[tuple[str, str], ...] = ()


def error_ratio(window: str) -> str:
    """Return the series with the part of the requests of a model that failed within a window."""
    return f"model:marsmith_errors:ratio_{window}"


def error_count(window: str) -> str:
    """Return the series with the number of requests of a model that failed within a window."""
    return f"model:marsmith_errors:count_{window}"


def slow_ratio(window: str) -> str:
    """Return the series with the part of the requests of a model that were slow within a window."""
    return f"model:marsmith_slow:ratio_{window}"


def slow_count(window: str) -> str:
    """Return the series with the number of requests of a model that were slow within a window."""
    return f"model:marsmith_slow:count_{window}"


def slow_edge(objective: Objective, edges: Sequence[float]) -> float | None:
    """Return the latency above which a request counts as slow: the next edge of the front's histogram, in seconds.

    None if the limit is above all edges.
    """
    place = bisect_left(edges, objective.p99_s)
    return edges[place] if place < len(edges) else None


def budgets(objective: Objective) -> Iterator[Record]:
    """Return the limits of a model as series."""
    model = (("model", objective.model),)
    yield Record(ERROR_BUDGET, f"vector({objective.error_budget:.10g})", model)
    yield Record(SLOW_REQUESTS_BUDGET, f"vector({SLOW_BUDGET:g})", model)
    yield Record(LATENCY_LIMIT, f"vector({objective.p99_s:.10g})", model)


def errors(windows: Sequence[str]) -> Iterator[Record]:
    """Return how many requests of each model failed."""
    for window in windows:
        copies = f'{ROLLOUT_PHASE.name}{{phase=~"shadowing|settling"}}[{window}]'
        no_shadow = f" unless on (model, version) max_over_time({copies})"
        yield from _seen(f'{ERRORS.name}{{kind="server"}}', REQUESTS.name, window, "handlers", no_shadow)
        yield from _seen(f'{FRONT_REPLIES.name}{{code_class="5xx"}}', FRONT_REPLIES.name, window, "front")
        failures, requests = _failures(window), _requests(window)
        yield Record(error_ratio(window), f"max by (model) ({failures} / ({requests} > 0))")
        if window in LONG_WINDOWS:
            yield Record(error_count(window), f"max by (model) ({failures})")


def slow_requests(objective: Objective, edge_s: float, windows: Sequence[str]) -> Iterator[Record]:
    """Return how many requests of a model were slower than ``edge_s``."""
    model = f'model="{objective.model}"'
    for window in windows:
        every = _sum(f"{FRONT_SECONDS.name}_count{{{model}}}", window)
        fast = _sum(f'{FRONT_SECONDS.name}_bucket{{{model}, le="{edge(edge_s)}"}}', window)
        yield Record(slow_ratio(window), f"1 - {fast}\n  / ({every} > 0)")
        if window in LONG_WINDOWS:
            yield Record(slow_count(window), f"{every}\n  - {fast}")


def edge(seconds: float) -> str:
    """Return an edge of a histogram as Prometheus' clients write it."""
    return repr(float(seconds))


def _sum(series: str, window: str, but: str = "") -> str:
    return f"sum by (model) (increase({series}[{window}]){but})"


def _seen(failed: str, every: str, window: str, seen_by: str, but: str = "") -> Iterator[Record]:
    """Return the requests and failures that somebody has seen; the failures are 0 and not missing before the first.

    Args:
        failed: counter of the failures.
        every: counter of all requests.
        window: the window.
        seen_by: who has seen them.
        but: which series do not count.
    """
    requests, label = _sum(every, window, but), (("seen_by", seen_by),)
    yield Record(_requests(window), requests, label)
    yield Record(_failures(window), f"{_sum(failed, window, but)}\n  or 0 * {requests}", label)


def _requests(window: str) -> str:
    return f"model:marsmith_requests:increase_{window}"


def _failures(window: str) -> str:
    return f"model:marsmith_failures:increase_{window}"
