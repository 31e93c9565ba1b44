"""Searches replayed on the table of a sweep: how far from its best each ends with the same number of trials.

A search sees a trial's score with the noise that a short load has, chooses by what it saw, and is judged by the table.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from marsmith.loadtest.tune.search import Attempt, LoadPrediction, Trial, TrialLoad, best, halve, most_promising
from marsmith.loadtest.tune.setup import Setup

# Relative standard deviation of a 99th percentile measured for NOISE_SECONDS; of longer trials it is that much less.
NOISE = 0.15
NOISE_SECONDS = 4.0
ANY_RATE = 1.0
USUAL = TrialLoad(ANY_RATE, NOISE_SECONDS)
# How many random trials optuna makes first, if nothing else is said.
TPE_DEFAULT = 10
OURS = "predict, then halve"
Table = Mapping[Setup, Trial]


@dataclass(frozen=True)
class Regret:
    """How far one search ends from the best set-up, as a share of its score, over many seeds.

    Attributes:
        search: which one.
        trials: how many it may make.
        mean, median, worst: 0: it always finds the best.
        within: share of the seeds in which it is within 5% of the best.
    """

    search: str
    trials: int
    mean: float
    median: float
    worst: float
    within: float


def trials_of(count: int) -> int:
    """Return how many trials ``halve`` makes of so many set-ups."""
    return count if count <= 2 else count + trials_of(-(-count // 2))


def count_for(trials: int) -> int:
    """Return the largest number of set-ups that ``halve`` works through in so many trials, at least one."""
    return max((count for count in range(1, trials + 1) if trials_of(count) <= trials), default=1)


def noisy(table: Table, seed: int, noise: float = NOISE) -> Attempt:
    """Return trials that give the table's figures with noise, at whatever rate: a table has one."""
    numbers = random.Random(seed)

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        spread = noise * (NOISE_SECONDS / offer.seconds) ** 0.5
        p99_ms = table[setup].p99_ms * max(0.01, numbers.gauss(1, spread))
        return replace(table[setup], seconds=offer.seconds, p99_ms=p99_ms)

    return attempt


def regret(table: Table, chosen: Setup | None, p99_ms: float) -> float:
    """Return how much of the best score is lost; 1 where nothing was chosen."""
    most = max(trial.score(p99_ms) for trial in table.values())
    return 1.0 if chosen is None or most <= 0 else 1 - table[chosen].score(p99_ms) / most


def our_choice(predictions: Sequence[LoadPrediction], attempt: Attempt, trials: int, p99_ms: float) -> Setup | None:
    """Choose as ``marsmith tune`` does: try the most promising ones, the better half of them for longer."""
    setups = most_promising(predictions, count_for(trials))
    tried = halve(setups, attempt, p99_ms=p99_ms, rate=ANY_RATE, seconds=NOISE_SECONDS)
    found = best(tried, p99_ms)
    return found.setup if found else None


def random_choice(table: Table, attempt: Attempt, trials: int, p99_ms: float, seed: int) -> Setup | None:
    """Choose the best of some set-ups drawn at random."""
    drawn = random.Random(seed).sample(sorted(table), min(trials, len(table)))
    return max(drawn, key=lambda setup: attempt(setup, USUAL).score(p99_ms), default=None)


def optuna_choice(table: Table, attempt: Attempt, trials: int, p99_ms: float, seed: int, startup: int) -> Setup | None:
    """Choose as optuna's TPE does, after ``startup`` random trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    seen: dict[int, Setup] = {}

    def objective(trial: optuna.Trial) -> float:
        setup = _suggested(trial, sorted(table))
        seen[trial.number] = setup
        return attempt(setup, USUAL).score(p99_ms)

    study.optimize(objective, n_trials=trials)
    return seen[study.best_trial.number]


def _suggested(trial: object, setups: Sequence[Setup]) -> Setup:
    """Let optuna choose placement, then batch size, then delay, among those that there are."""
    choose: Callable[..., int] = trial.suggest_categorical  # type: ignore[attr-defined]
    placements = sorted({each.placement for each in setups})
    placement = placements[choose("placement", list(range(len(placements))))]
    own = [each for each in setups if each.placement == placement]
    size = choose("batch_size", sorted({each.batch_size for each in own}))
    delays = sorted({each.max_batch_delay_ms for each in own if each.batch_size == size})
    delay = choose("delay", delays) if len(delays) > 1 else delays[0]
    return Setup(placement, size, delay)


def regrets(
    table: Table, predictions: Sequence[LoadPrediction], p99_ms: float, budgets: Sequence[int], seeds: int
) -> list[Regret]:
    """Compare the searches for each number of trials."""
    known = [each for each in predictions if each.setup in table]
    searches: dict[str, Callable[[Attempt, int, int], Setup | None]] = {
        OURS: lambda attempt, trials, _: our_choice(known, attempt, trials, p99_ms),
        "random": lambda attempt, trials, seed: random_choice(table, attempt, trials, p99_ms, seed),
        "optuna TPE": lambda attempt, trials, seed: optuna_choice(table, attempt, trials, p99_ms, seed, TPE_DEFAULT),
        "optuna TPE, 3 random first": lambda attempt, trials, seed: optuna_choice(
            table, attempt, trials, p99_ms, seed, 3
        ),
    }

    def values(choose: Callable[[Attempt, int, int], Setup | None], trials: int) -> list[float]:
        return [regret(table, choose(noisy(table, seed), trials, seed), p99_ms) for seed in range(seeds)]

    return [_summary(name, trials, values(choose, trials)) for trials in budgets for name, choose in searches.items()]


def _summary(search: str, trials: int, values: Sequence[float]) -> Regret:
    within = sum(value <= 0.05 for value in values) / len(values)
    return Regret(search, trials, statistics.mean(values), statistics.median(values), max(values), within)


def regret_table(found: Sequence[Regret]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = ["| trials | search | mean regret | median | worst | within 5% |", "|---:|---|---:|---:|---:|---:|"]
    for each in found:
        shares = " | ".join(f"{value:.1%}" for value in (each.mean, each.median, each.worst, each.within))
        lines.append(f"| {each.trials} | {each.search} | {shares} |")
    return lines
