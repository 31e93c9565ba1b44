"""Rollouts in simulation: many runs at once, tick by tick, weighed as ``marsmith.statistics`` weighs single events."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from marsmith.statistics import RATIOS, Evidence, weigh, weigh_rate

TICK_S = 0.25
Floats = npt.NDArray[np.float64]
# Share of the canary by time since the start in seconds, and the rate of an event by time and run.
ShareAt = Callable[[float], float]
RatesAt = Callable[[float], Floats]


@dataclass(frozen=True)
class Traffic:
    """What reaches both versions.

    Attributes:
        arrivals: requests per second at a time, for each run.
        canary: probability of the event on the canary at a time, for each run.
        stable: the same on the stable version.
        share: of the canary at a time.
    """

    arrivals: RatesAt
    canary: RatesAt
    stable: RatesAt
    share: ShareAt


@dataclass(frozen=True)
class Outcome:
    """What became of the runs.

    Attributes:
        found_s: when evidence reached its limit, in seconds since the start; infinite: never.
        events: events of the canary until then, or until the end.
    """

    found_s: Floats
    events: Floats

    @property
    def found(self) -> float:
        """Share of the runs in which the limit was reached."""
        return float(np.isfinite(self.found_s).mean())

    def quantile_s(self, quantile: float) -> float:
        """Return a quantile of the time until then over all runs, in seconds; runs without it count as infinite."""
        return float(np.quantile(self.found_s, quantile, method="higher"))


def constant(value: float) -> RatesAt:
    """Return a rate that is the same at any time."""
    return lambda _now: np.array([value])


def ramp(now: float) -> float:
    """Return the share of a canary that goes 1, 5, 25, 50%, five minutes each and then on at 50%."""
    return (0.01, 0.05, 0.25, 0.5)[min(int(now // 300), 3)]


def log_step(share: float, is_canary: bool) -> Floats:
    """Return what one event adds to the logarithms of the evidence, as a column."""
    return np.array(weigh(Evidence(), share, is_canary).logs)[:, None]


def log_values(logs: Floats) -> Floats:
    """Return the logarithm of the evidence of each run; ``logs`` has a row for each ratio."""
    largest = logs.max(axis=0)
    value: Floats = largest + np.log(np.exp(logs - largest).mean(axis=0))
    return value


def simulate(traffic: Traffic, limit: float, seconds: float, runs: int, seed: int) -> Outcome:
    """Simulate rollouts whose evidence is looked at four times a second; one that was found stays found."""
    random = np.random.default_rng(seed)

    def weighed(now: float) -> tuple[Floats, Floats]:
        share = traffic.share(now)
        requests = traffic.arrivals(now) * TICK_S
        on_canary = random.poisson(requests * share * traffic.canary(now), runs)
        on_stable = random.poisson(requests * (1 - share) * traffic.stable(now), runs)
        return log_step(share, True) * on_canary + log_step(share, False) * on_stable, on_canary.astype(float)

    return _until_found(weighed, limit, seconds, runs)


@dataclass(frozen=True)
class Compared:
    """Replies of a canary that are compared with those of the stable version.

    Attributes:
        per_second: how many at a time, for each run.
        rate: share of them that disagree.
        allowed: share that may disagree.
    """

    per_second: RatesAt
    rate: float
    allowed: float


def simulate_compared(compared: Compared, limit: float, seconds: float, runs: int, seed: int) -> Outcome:
    """Simulate rollouts whose replies are compared, as ``simulate`` does for events."""
    random = np.random.default_rng(seed)
    hit, other = (np.array(weigh_rate(Evidence(), compared.allowed, each).logs)[:, None] for each in (True, False))

    def weighed(now: float) -> tuple[Floats, Floats]:
        pairs = compared.per_second(now) * TICK_S
        disagree = random.poisson(pairs * compared.rate, runs)
        agree = random.poisson(pairs * (1 - compared.rate), runs)
        return hit * disagree + other * agree, disagree.astype(float)

    return _until_found(weighed, limit, seconds, runs)


def _until_found(weighed: Callable[[float], tuple[Floats, Floats]], limit: float, seconds: float, runs: int) -> Outcome:
    """Add up what each tick adds to the logarithms, with its bad events, until each run has reached the limit."""
    logs, found_s, events = np.zeros((len(RATIOS), runs)), np.full(runs, np.inf), np.zeros(runs)
    for tick in range(1, round(seconds / TICK_S) + 1):
        now, live = tick * TICK_S, np.isinf(found_s)
        if not live.any():
            break
        added, bad = weighed(now)
        logs += added
        events[live] += bad[live]
        found_s[live & (log_values(logs) >= math.log(limit))] = now
    return Outcome(found_s, events)


def diurnal(mean: float, period_s: float = 1200.0) -> RatesAt:
    """Return arrivals that swing between a tenth and nearly twice their mean."""
    return lambda now: np.array([mean * (1 + 0.9 * math.sin(2 * math.pi * now / period_s))])


def bursts(mean: float, runs: int, seed: int, seconds: float) -> RatesAt:
    """Return arrivals that are ten times their mean for ten seconds, once in two minutes on average."""
    return _switched(mean, 10 * mean, runs, seed, seconds, every_s=120.0, length_s=10.0)


def outages(rate: float, runs: int, seed: int, seconds: float) -> RatesAt:
    """Return a probability that is 0.8 for a minute, once in ten minutes on average, for both versions alike."""
    return _switched(rate, 0.8, runs, seed, seconds, every_s=600.0, length_s=60.0)


def _switched(
    usual: float, other: float, runs: int, seed: int, seconds: float, *, every_s: float, length_s: float
) -> RatesAt:
    random = np.random.default_rng(seed)
    starts = random.uniform(0, seconds, (max(1, round(seconds / every_s)), runs))

    def at(now: float) -> Floats:
        active = ((starts <= now) & (now < starts + length_s)).any(axis=0)
        return np.where(active, other, usual)

    return at


def false_by_users(*, thinned: bool, limit: float, users: int, runs: int, seed: int) -> float:
    """Return in how many runs a version is found worse than itself if few users send nearly all bad requests.

    One user in a hundred sends 50 requests that fail on any version. Users stay with one version, at a share of 5%.

    Args:
        thinned: whether at most one event of each user counts.
        limit: of the evidence.
        users: number of users.
        runs: number of runs.
        seed: of the random numbers.
    """
    random, share, found = np.random.default_rng(seed), 0.05, 0
    steps = np.hstack([log_step(share, False), log_step(share, True)])
    for _ in range(runs):
        bad = random.random(users) < 0.01
        on_canary = random.random(users)[bad] < share
        sent = np.repeat(on_canary, 1 if thinned else 50)
        random.shuffle(sent)
        logs = np.cumsum(steps[:, sent.astype(int)], axis=1)
        found += bool(logs.size and log_values(logs).max() >= math.log(limit))
    return found / runs
