"""Which set-ups are tried, for how long, and which one wins: decisions only, trials are somebody else's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from marsmith.tuning.batch_queue import predicted_rate
from marsmith.tuning.service_time import ServiceTime
from marsmith.tuning.setup import Placement, Setup

# A placement whose times were measured a little too kindly must not take every place.
MOST_OF_ONE_PLACEMENT = 0.5


@dataclass(frozen=True)
class Prediction:
    """What a set-up should do: the largest rate, in requests per second, that holds the limit."""

    setup: Setup
    rate: float


@dataclass(frozen=True)
class Trial:
    """What a set-up did on the live server under a closed loop.

    Attributes:
        setup: what was tried.
        seconds: how long.
        requests_per_second: answers.
        p99_ms: 99th percentile of the latency, in milliseconds.
        failed: requests without an answer.
        reason: why it could not be tried; empty where it was.
    """

    setup: Setup
    seconds: float
    requests_per_second: float
    p99_ms: float
    failed: int = 0
    reason: str = ""

    def score(self, p99_ms: float) -> float:
        """Return what is to be large: the rate, less in proportion where the limit was not held; 0 for failures."""
        if self.reason or self.failed or not self.p99_ms > 0:
            return 0.0
        return self.requests_per_second * min(1.0, p99_ms / self.p99_ms)


def predict(
    candidates: Sequence[Setup], times: Mapping[Placement, ServiceTime], p99_ms: float
) -> tuple[Prediction, ...]:
    """Predict every set-up whose placement was measured, best first; of equals the smaller batch and delay."""
    made = [
        Prediction(
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


def most_promising(predictions: Sequence[Prediction], count: int) -> tuple[Setup, ...]:
    """Return the set-ups to try: the best ones, and different ones first.

    Of set-ups that differ in their delay only, the best comes first and the others last; and no placement gets more
    than half of the places while there are others.
    """
    share = max(1, math.ceil(MOST_OF_ONE_PLACEMENT * count))
    chosen: list[Setup] = []
    left: list[Setup] = []
    for prediction in predictions:
        setup = prediction.setup
        same = [each for each in chosen if each.placement == setup.placement]
        is_new = len(same) < share and all(each.batch_size != setup.batch_size for each in same)
        (chosen if is_new else left).append(setup)
    return tuple((chosen[:count] + left)[:count])


def halve(
    setups: Sequence[Setup],
    attempt: Callable[[Setup, float], Trial],
    *,
    p99_ms: float,
    seconds: float,
    on_done: Callable[[Setup], None] = lambda _: None,
) -> tuple[Trial, ...]:
    """Try all, then the better half for twice as long, until two are left; return every trial, in order.

    Args:
        setups: to try, the most promising first.
        attempt: tries one for so many seconds.
        p99_ms: the limit that scores count against, in milliseconds.
        seconds: of the first round.
        on_done: is told each set-up that is out of the race.
    """
    trials: list[Trial] = []
    left = list(setups)
    while left:
        made = [attempt(setup, seconds) for setup in left]
        trials += made
        ranked = sorted(made, key=lambda trial: -trial.score(p99_ms))
        keep = 0 if len(left) <= 2 else math.ceil(len(left) / 2)
        for trial in ranked[max(keep, 1) :]:
            on_done(trial.setup)
        left = [trial.setup for trial in ranked[:keep] if trial.score(p99_ms) > 0]
        seconds *= 2
    return tuple(trials)


def best(trials: Sequence[Trial], p99_ms: float) -> Trial | None:
    """Return the trial with the best score among the longest ones; None where nothing worked."""
    good = [trial for trial in trials if trial.score(p99_ms) > 0]
    longest = max((trial.seconds for trial in good), default=0.0)
    finalists = [trial for trial in good if trial.seconds == longest]
    return max(finalists, key=lambda trial: trial.score(p99_ms), default=None)


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats in both rate and latency, slowest rate first."""
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


def clients_for(rate: float, p99_ms: float) -> int:
    """Return how many clients of a closed loop keep a server at ``rate`` busy within the limit (Little's law)."""
    return max(2, min(64, round(rate * p99_ms / 1000)))
