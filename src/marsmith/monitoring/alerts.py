"""Alert rules. Each has a section of the same name in the reference of alerts, with what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from marsmith.metric_names import (
    DRIFT_DETECTED,
    FRONT_UP,
    LAST_LOOK,
    MIN_WORKERS,
    QUEUE_CAPACITY,
    QUEUE_PENDING,
    ROLLOUT_PHASE,
    SERVER_RESTARTS,
    UP,
    WORKER_RESTARTS,
    WORKERS,
)
from marsmith.monitoring import recording
from marsmith.monitoring.jobs import JOBS, SUPERVISOR

# page: users notice it, somebody must act now. ticket: somebody must act on a working day. info: good to know.
Severity = Literal["page", "ticket", "info"]
# With fewer failures in the long window, a burn rate says little.
FEWEST = 10
_BUDGET_DAYS = 30


@dataclass(frozen=True)
class Alert:
    """An alert rule.

    Attributes:
        name: its name; rules of different windows share one.
        expression: in PromQL; it may have several lines.
        wait: how long the expression must hold, as Prometheus writes durations.
        severity: who must know.
        summary: one line, with Prometheus' templates.
        description: what follows from it.
        window: long window of a burn rate; empty for other alerts.
    """

    name: str
    expression: str
    wait: str
    severity: Severity
    summary: str
    description: str
    window: str = ""


@dataclass(frozen=True)
class BurnRate:
    """A condition of multi-window burn rates: a factor of the budget within a long and a short window.

    The method and its factors are of The Site Reliability Workbook (2018), chapter 5.
    """

    factor: float
    long: str
    short: str
    severity: Severity


BURN_RATES = (
    BurnRate(14.4, "1h", "5m", "page"),
    BurnRate(6, "6h", "30m", "page"),
    BurnRate(3, "1d", "2h", "ticket"),
    BurnRate(1, "3d", "6h", "ticket"),
)

Series = Callable[[str], str]


def burn_alerts() -> Iterator[Alert]:
    """Return the alerts on budgets; they concern models with a service level only."""
    for rate in BURN_RATES:
        share = "{{ $value | humanizePercentage }} of the requests in the last " + rate.long
        yield Alert(
            "MarsmithErrorBudgetBurn",
            _burning(rate, recording.ERROR_BUDGET, recording.error_ratio, recording.error_count),
            "0s",
            rate.severity,
            f"{{{{ $labels.model }}}} failed {share}",
            _rest(rate, "error budget"),
            rate.long,
        )
        yield Alert(
            "MarsmithLatencyBudgetBurn",
            _burning(rate, recording.SLOW_REQUESTS_BUDGET, recording.slow_ratio, recording.slow_count),
            "0s",
            rate.severity,
            f"{{{{ $labels.model }}}} was too slow for {share}",
            _rest(rate, "budget of slow requests"),
            rate.long,
        )


def _burning(rate: BurnRate, budget: str, ratio: Series, count: Series) -> str:
    limit = f"on (model) {rate.factor:g} * {budget}"
    return (
        f"({ratio(rate.long)} > {limit})\n"
        f"  and on (model) ({ratio(rate.short)} > {limit})\n"
        f"  and on (model) ({count(rate.long)} >= {FEWEST})"
    )


def _rest(rate: BurnRate, budget: str) -> str:
    days = _BUDGET_DAYS / rate.factor
    lasts = f"{days:.0f} days" if days >= 3 else f"{24 * days:.0f} hours"
    return f"At this rate the {budget} of {_BUDGET_DAYS} days is used up in {lasts}."


_VERSION = "{{ $labels.model }} {{ $labels.version }}"

PLAIN_ALERTS = (
    Alert(
        "MarsmithScrapeGone",
        f'up{{job=~"{"|".join(JOBS)}"}} == 0\n  or absent(up{{job="{SUPERVISOR}"}})',
        "2m",
        "page",
        "Prometheus cannot read the job {{ $labels.job }}",
        "Nothing is known of the server, and no other alert can fire.",
    ),
    Alert(
        "MarsmithServerDown",
        f"{UP.name} == 0\n  or time() - {LAST_LOOK.name} > 120",
        "1m",
        "page",
        "TorchServe does not answer its supervisor",
        "No model answers; with the front, requests wait.",
    ),
    Alert(
        "MarsmithFrontDown",
        f"{FRONT_UP.name} == 0",
        "1m",
        "page",
        "The front does not answer",
        "It keeps the public address, so no request arrives.",
    ),
    Alert(
        "MarsmithNoWorkerReady",
        f'sum by (instance, model, version) ({WORKERS.name}{{status="ready"}}) == 0\n'
        f"  and on (instance, model, version) {MIN_WORKERS.name} > 0",
        "1m",
        "page",
        f"{_VERSION} has no worker that is ready",
        "Requests for this version fail.",
    ),
    Alert(
        "MarsmithQueueOverHalf",
        f"{QUEUE_PENDING.name} / {QUEUE_CAPACITY.name} > 0.5",
        "5m",
        "ticket",
        f"the queue of {_VERSION} is {{{{ $value | humanizePercentage }}}} full",
        "When it is full, requests are refused with 503.",
    ),
    Alert(
        "MarsmithWorkerRestarts",
        f"increase({WORKER_RESTARTS.name}[30m]) > 2",
        "0s",
        "ticket",
        f"workers of {_VERSION} were restarted {{{{ $value | humanize }}}} times in 30 minutes",
        "Each of them had requests, which were answered with 500 or sent again.",
    ),
    Alert(
        "MarsmithServerRestarts",
        f"increase({SERVER_RESTARTS.name}[1h]) > 0",
        "0s",
        "ticket",
        "TorchServe died and was restarted",
        "Without the front, requests failed meanwhile.",
    ),
    Alert(
        "MarsmithRolloutOnHold",
        f'{ROLLOUT_PHASE.name}{{phase=~"paused|inconclusive"}} == 1',
        "15m",
        "ticket",
        f"the rollout of {_VERSION} is {{{{ $labels.phase }}}}",
        "It goes no further by itself.",
    ),
    Alert(
        "MarsmithDrift",
        f'{DRIFT_DETECTED.name}{{against="baseline"}} == 1',
        "0s",
        "ticket",
        f"the {{{{ $labels.statistic }}}} of {_VERSION} has drifted",
        "Requests or replies are not like those of the baseline period.",
    ),
    Alert(
        "MarsmithSkew",
        f'{DRIFT_DETECTED.name}{{against="reference"}} == 1',
        "0s",
        "info",
        f"the {{{{ $labels.statistic }}}} of {_VERSION} is not that of its validation data",
        "The validation data is not like the requests, so its accuracy says less about them.",
    ),
)


def all_alerts() -> tuple[Alert, ...]:
    """Return every alert rule, in the order of the file."""
    return (*burn_alerts(), *PLAIN_ALERTS)
