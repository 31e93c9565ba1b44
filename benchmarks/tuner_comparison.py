"""What the tuner's search and the sweep found: tables, the verdict, targets, and all of it as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from marsmith.loadtest.tune.search import LoadPrediction, Trial
from marsmith.loadtest.tune.setup import Placement, Setup
from tuner_replay import Table

SHARE_OF_TRIALS = 0.25
GOAL = 0.95
LEAST_SLOPE = 0.5


@dataclass(frozen=True)
class Final:
    """What a set-up did in a turn of the finals: at so many requests per second, that 99th percentile, in ms."""

    setup: Setup
    rate: float
    p99_ms: float


@dataclass(frozen=True)
class Comparison:
    """What the search and the sweep found.

    Attributes:
        predictions: of every set-up, best first.
        search: the search's trials, in order.
        sweep: one trial of every set-up, all at one rate.
        finals: the search's choice and the sweep's best ones, in turns.
        chosen: by the search; None where nothing worked.
        p99_ms: the limit.
        seconds: how long measuring batches, the search and the sweep took, all in all.
    """

    predictions: tuple[LoadPrediction, ...]
    search: tuple[Trial, ...]
    sweep: tuple[Trial, ...]
    finals: tuple[Final, ...]
    chosen: Setup | None
    p99_ms: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def table(self) -> Table:
        """The sweep, by set-up."""
        return {trial.setup: trial for trial in self.sweep}

    def final_rate(self, setup: Setup) -> float:
        """The rate at which a set-up reaches the limit, by all its turns in the finals, in requests per second."""
        points = {rate: self.final_p99_ms(setup, rate) for rate in self.final_rates}
        return rate_at(points, self.p99_ms)

    @property
    def final_rates(self) -> list[float]:
        """The rates of the finals, ascending."""
        return sorted({final.rate for final in self.finals})

    def final_p99_ms(self, setup: Setup, rate: float) -> float:
        """Median 99th percentile of a set-up at a rate of the finals, in milliseconds."""
        return statistics.median(each.p99_ms for each in self.finals if (each.setup, each.rate) == (setup, rate))

    @property
    def ratio(self) -> float:
        """Rate of the search's choice over the largest of the finals; 0 where nothing was chosen."""
        most = max((self.final_rate(each) for each in {final.setup for final in self.finals}), default=0.0)
        return self.final_rate(self.chosen) / most if self.chosen and most else 0.0


def sweep_table(comparison: Comparison) -> list[str]:
    """Return the sweep, best first, as lines of a table in Markdown; the search's choice is bold."""
    predicted = {each.setup: each.rate for each in comparison.predictions}
    tried = {trial.setup for trial in comparison.search}
    heads = ("set-up", "predicted req/s", "req/s", "p99 ms", "score", "tried by the search")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---|"]
    for trial in sorted(comparison.sweep, key=lambda trial: -trial.score(comparison.p99_ms)):
        name = f"**{trial.setup}**" if trial.setup == comparison.chosen else str(trial.setup)
        figures = f"{predicted.get(trial.setup, 0.0):.0f} | {trial.requests_per_second:.0f} | {trial.p99_ms:.0f}"
        mark = "yes" if trial.setup in tried else ""
        lines.append(f"| {name} | {figures} | {trial.score(comparison.p99_ms):.0f} | {mark} |")
    return lines


def finals_table(comparison: Comparison) -> list[str]:
    """Return what the finalists held, best first, as lines of a table in Markdown."""
    rates = comparison.final_rates
    heads = ("finals", f"reaches {comparison.p99_ms:g} ms at, req/s", *(f"p99 ms at {rate:.0f}/s" for rate in rates))
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for setup in sorted({final.setup for final in comparison.finals}, key=comparison.final_rate, reverse=True):
        name = f"**{setup}**" if setup == comparison.chosen else str(setup)
        p99s = " | ".join(f"{comparison.final_p99_ms(setup, rate):.0f}" for rate in rates)
        lines.append(f"| {name} | {comparison.final_rate(setup):.0f} | {p99s} |")
    return lines


def rate_at(p99s_ms: Mapping[float, float], limit_ms: float) -> float:
    """Return the rate at which the 99th percentile reaches a limit: by a line through the logarithms of both.

    Args:
        p99s_ms: rate to 99th percentile, in milliseconds; at least two.
        limit_ms: in milliseconds.
    """
    rates, latencies = ([math.log(value) for value in values] for values in (p99s_ms.keys(), p99s_ms.values()))
    slope, _ = statistics.linear_regression(rates, latencies)
    # A longer queue never made a server quicker: a flatter line is noise.
    slope = max(slope, LEAST_SLOPE)
    middle, usual = statistics.mean(rates), statistics.mean(latencies)
    return math.exp(middle + (math.log(limit_ms) - usual) / slope)


def verdict(comparison: Comparison) -> str:
    """Say how the search did."""
    trials, every = len(comparison.search), len(comparison.sweep)
    met = comparison.ratio >= GOAL and trials <= SHARE_OF_TRIALS * every
    took = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in comparison.seconds.items())
    return (
        f"chosen: {comparison.chosen}: {comparison.ratio:.3f} of the best, after {trials} trials of {every} ({took}); "
        f"goal {GOAL:g} with at most a quarter: {'met' if met else 'NOT MET'}"
    )


def targets(comparison: Comparison) -> list[dict[str, Any]]:
    """Return what is wanted beside what is, as the page of all benchmarks takes it."""
    trials, every = len(comparison.search), len(comparison.sweep)
    return [
        {
            "what": "tuner: its choice / the best of all set-ups",
            "goal": f">= {GOAL:g}",
            "value": f"{comparison.ratio:.2f}",
            "met": comparison.ratio >= GOAL,
        },
        {
            "what": "tuner: trials / set-ups",
            "goal": f"<= {SHARE_OF_TRIALS:g}",
            "value": f"{trials}/{every}",
            "met": trials <= SHARE_OF_TRIALS * every,
        },
    ]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as JSON."""
    return asdict(comparison) | {"ratio": comparison.ratio}


def from_json(value: dict[str, Any]) -> Comparison:
    """Read what ``to_json`` gave."""

    def setup(each: dict[str, Any]) -> Setup:
        return Setup(Placement(**each["placement"]), each["batch_size"], each["max_batch_delay_ms"])

    def trials(key: str) -> tuple[Trial, ...]:
        return tuple(Trial(**{**each, "setup": setup(each["setup"])}) for each in value[key])

    predictions = tuple(LoadPrediction(setup(each["setup"]), each["rate"]) for each in value["predictions"])
    return Comparison(
        predictions,
        trials("search"),
        trials("sweep"),
        tuple(Final(setup(each["setup"]), each["rate"], each["p99_ms"]) for each in value["finals"]),
        setup(value["chosen"]) if value["chosen"] else None,
        value["p99_ms"],
        value["seconds"],
    )
