"""Decisions of the search: the set-ups to try, for how long, and the winner. Callers run the trials."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from marsmith.loadtest.tune.queue_model import predicted_rate
from marsmith.loadtest.tune.setup import Placement, ServiceTime, Setup

# A placement whose times were measured as too short must not take every place.
MOST_OF_ONE_PLACEMENT = 0.5
# Predictions include neither the frontend nor the driver, which use the cores too.
HOPED_FOR = 0.7
# Share of the rate of workers that are never idle; for trials in which no set-up is expected to hold the limit.
WITHOUT_HOPE = 0.5
# Predicted rates within this factor count as equal.
ALIKE = 1.05
# A pause of the machine spoils the 99th percentile of one turn, but not the median of three.
TURNS = 3
# Limits of the change of the rate between rounds: a pause of the machine must not decide it.
LEAST_MOVE, MOST_MOVE = 0.5, 1.25


@dataclass(frozen=True)
class LoadPrediction:
    """Prediction for a set-up: the largest rate, in requests per second, that holds the limit."""

    setup: Setup
    rate: float


@dataclass(frozen=True)
class TrialLoad:
    """The load of a trial, with Poisson arrivals.

    Attributes:
        rate: requests per second.
        seconds: duration, in seconds.
        seed: seed of the arrivals; the same seed gives the same arrivals.
    """

    rate: float
    seconds: float
    seed: int = 0


Attempt = Callable[[Setup, TrialLoad], "Trial"]


@dataclass(frozen=True)
class Trial:
    """Result of a set-up on the live server, under Poisson arrivals.

    Attributes:
        setup: what was tried.
        seconds: duration, in seconds.
        requests_per_second: answers per second; the rate of the load unless the set-up was overloaded.
        p99_ms: 99th percentile of the latency, in milliseconds.
        failed: number of requests without an answer.
        reason: why the trial failed; empty if it ran.
    """

    setup: Setup
    seconds: float
    requests_per_second: float
    p99_ms: float
    failed: int = 0
    reason: str = ""

    def score(self, p99_ms: float) -> float:
        """Return a score, larger is better: the rate times the ratio of limit to 99th percentile. 0 for failures.

        Set-ups are compared at one rate. The score thus orders them by their 99th percentile, and overloaded ones by
        both.
        """
        if self.reason or self.failed or not self.p99_ms > 0:
            return 0.0
        return self.requests_per_second * p99_ms / self.p99_ms


def predict(
    candidates: Sequence[Setup], times: Mapping[Placement, ServiceTime], p99_ms: float
) -> tuple[LoadPrediction, ...]:
    """Predict every set-up whose placement was measured, best first.

    Of equal ones, the smaller batch and delay comes first.
    """
    made = [
        LoadPrediction(
            setup,
            predicted_rate(
                times[setup.placement],
                workers=setup.placement.workers,
                batch_size=setup.batch_size,
                max_batch_delay_s=setup.max_batch_delay_ms / 1000,
                p99_s=p99_ms / 1000,
            ),
        )
        for setup in candidates
        if setup.placement in times
    ]
    return tuple(sorted(made, key=lambda each: (-each.rate, each.setup.batch_size, each.setup.max_batch_delay_ms)))


def most_promising(predictions: Sequence[LoadPrediction], count: int) -> tuple[Setup, ...]:
    """Return the set-ups to try: the best ones, with different ones first.

    Of set-ups that differ only in their delay, one comes first and the others last. That one has the smallest delay of
    those that are about as good as the best, because a delay adds latency at low load. No placement gets more than half
    of the places while there are others.
    """
    first_of = _least_delays(predictions)
    share = max(1, math.ceil(MOST_OF_ONE_PLACEMENT * count))
    chosen: list[Setup] = []
    left: list[Setup] = []
    for prediction in predictions:
        setup = prediction.setup
        same = [each for each in chosen if each.placement == setup.placement]
        is_new = len(same) < share and setup in first_of
        (chosen if is_new else left).append(setup)
    return tuple((chosen[:count] + left)[:count])


def _least_delays(predictions: Sequence[LoadPrediction]) -> set[Setup]:
    """Return, for each placement and batch size, the smallest-delay set-up that is about as good as the best."""
    groups: dict[tuple[Placement, int], list[LoadPrediction]] = {}
    for each in predictions:
        groups.setdefault((each.setup.placement, each.setup.batch_size), []).append(each)
    alike = (
        [each.setup for each in group if each.rate * ALIKE >= max(one.rate for one in group)]
        for group in groups.values()
    )
    return {min(setups, key=lambda setup: setup.max_batch_delay_ms) for setups in alike}


def halve(
    setups: Sequence[Setup],
    attempt: Attempt,
    *,
    p99_ms: float,
    rate: float,
    seconds: float,
    on_done: Callable[[Setup], None] = lambda _: None,
) -> tuple[Trial, ...]:
    """Try all set-ups, then the better half for twice as long, until two are left. Return every trial, in order.

    All set-ups of a round are tried at one rate. From round to round it moves towards the rate at which the best one
    reaches the limit: a set-up that is fast at low load may be the first to be overloaded.

    Args:
        setups: set-ups to try, the most promising first.
        attempt: runs one trial.
        p99_ms: latency limit of the score, in milliseconds.
        rate: rate of the first round, in requests per second.
        seconds: duration of each set-up in the first round, all its turns together.
        on_done: called with each set-up that is eliminated.
    """
    trials: list[Trial] = []
    left = list(setups)
    while left:
        made = in_turns(left, attempt, TrialLoad(rate, seconds))
        trials += made
        ranked = sorted(made, key=lambda trial: -trial.score(p99_ms))
        keep = 0 if len(left) <= 2 else math.ceil(len(left) / 2)
        for trial in ranked[max(keep, 1) :]:
            on_done(trial.setup)
        left = [trial.setup for trial in ranked[:keep] if trial.score(p99_ms) > 0]
        rate = next_rate(rate, ranked[0], p99_ms)
        seconds *= 2
    return tuple(trials)


def in_turns(setups: Sequence[Setup], attempt: Attempt, offer: TrialLoad) -> list[Trial]:
    """Try set-ups in turns, and return one trial of each: medians over its turns.

    Within a turn all set-ups get the same arrivals. The next turn has other arrivals and the reverse order.

    Args:
        setups: set-ups to try.
        attempt: runs one trial.
        offer: load of each set-up, all its turns together.
    """
    made: dict[Setup, list[Trial]] = {setup: [] for setup in setups}
    for turn in range(TURNS):
        share = TrialLoad(offer.rate, offer.seconds / TURNS, offer.seed + turn)
        for setup in setups if turn % 2 == 0 else reversed(setups):
            if not any(trial.reason for trial in made[setup]):
                made[setup].append(attempt(setup, share))
    return [_together(trials) for trials in made.values()]


def _together(trials: Sequence[Trial]) -> Trial:
    return Trial(
        trials[0].setup,
        sum(trial.seconds for trial in trials),
        statistics.median(trial.requests_per_second for trial in trials),
        statistics.median(trial.p99_ms for trial in trials),
        sum(trial.failed for trial in trials),
        next((trial.reason for trial in trials if trial.reason), ""),
    )


def best(trials: Sequence[Trial], p99_ms: float) -> Trial | None:
    """Return the trial with the best score among the longest ones; None if nothing worked."""
    good = [trial for trial in trials if trial.score(p99_ms) > 0]
    longest = max((trial.seconds for trial in good), default=0.0)
    finalists = [trial for trial in good if trial.seconds == longest]
    return max(finalists, key=lambda trial: trial.score(p99_ms), default=None)


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats in both rate and latency, lowest rate first."""
    good = [trial for trial in trials if not trial.reason and not trial.failed]
    front = [
        trial
        for trial in good
        if not any(
            other.requests_per_second >= trial.requests_per_second
            and other.p99_ms <= trial.p99_ms
            and (other.requests_per_second, other.p99_ms) != (trial.requests_per_second, trial.p99_ms)
            for other in good
        )
    ]
    return tuple(sorted(front, key=lambda trial: trial.requests_per_second))


def first_rate(predictions: Sequence[LoadPrediction], times: Mapping[Placement, ServiceTime]) -> float:
    """Return the rate of the first round, in requests per second: close to the predicted rate of the best set-up."""
    hoped_for = HOPED_FOR * max(each.rate for each in predictions)
    most = max(time.most_per_second * placement.workers for placement, time in times.items())
    return hoped_for or WITHOUT_HOPE * most


def next_rate(rate: float, best: Trial, p99_ms: float) -> float:
    """Return the next rate: halfway, in proportion, to the rate at which the best set-up reaches the limit."""
    if not best.score(p99_ms) > 0:
        return rate
    return rate * min(max(math.sqrt(p99_ms / best.p99_ms), LEAST_MOVE), MOST_MOVE)
