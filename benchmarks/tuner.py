"""The tuner against a sweep of every set-up on the live server, and its search against optuna's.

    python benchmarks/tuner.py --json tuner.json            # about 10 minutes on 2 cores
    python benchmarks/tuner.py --replay tuner.json          # the second part again, from the figures of the first

First the tuner's own search (``marsmith tune``: measure batches, predict, try the most promising ones) with at most a
quarter of the sweep's trials; then the sweep: every set-up under the same random arrivals, at the rate that the search
ended with; then what the search chose and the best of the sweep take turns at several rates, because the largest of
many noisy figures flatters itself; a line through them says at which rate each reaches the limit. The goal is at least
0.95 of the largest of these rates.

The second part replays searches on the sweep's table with many seeds, each with the same number of trials: ours,
random, and optuna's TPE. Regret is the share of the best score that is lost; the score is the rate, as often as the
99th percentile fits into the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from contenders import jpeg_inputs
from machine import machine_line, machine_record
from marsmith.loadtest.tune.search import (
    Attempt,
    LoadPrediction,
    Trial,
    TrialLoad,
    best,
    first_rate,
    halve,
    in_turns,
    most_promising,
    predict,
)
from marsmith.loadtest.tune.setup import Placement, ServiceTime, Setup, placements, setups
from marsmith.loadtest.tune.trials import LiveTrials, measure_service_time
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.project import Project
from marsmith.server.scratch import scratch_server
from photos import photos
from tuner_comparison import (
    SHARE_OF_TRIALS,
    Comparison,
    Final,
    finals_table,
    from_json,
    sweep_table,
    targets,
    to_json,
    verdict,
)
from tuner_replay import count_for, regret_table, regrets

REPOSITORY = Path(__file__).resolve().parents[1]
ARCHIVE = REPOSITORY / "model_store" / "efficientnet_lite0-1.0.mar"
FINALISTS = 3
# Of the rate that the search ended with.
FINAL_SHARES = (0.8, 0.9, 1.0, 1.1)
# Stands for the 99th percentile where requests failed.
LOST_MS = 10_000.0
# Of full load before the first trial, in seconds: so long the JVM still compiles what it runs most.
WARM_S = 8.0
BUDGETS = (2, 4, 7, 15)


@dataclass(frozen=True)
class Space:
    """What is swept."""

    placements: tuple[Placement, ...]
    batch_sizes: tuple[int, ...]
    delays_ms: tuple[int, ...]

    @property
    def setups(self) -> list[Setup]:
        """Every set-up."""
        return setups(self.placements, self.batch_sizes, self.delays_ms)


def service_times(maker: VariantMaker, space: Space, bodies: Sequence[bytes]) -> dict[Placement, ServiceTime]:
    """Measure batches without a server, as the tuner does."""
    times = {}
    with tempfile.TemporaryDirectory(prefix="marsmith-tuner-") as scratch:
        for placement in space.placements:
            say(f"measuring batches of {placement.workers} x {placement.threads}")
            inputs = jpeg_inputs(bodies)
            times[placement] = measure_service_time(maker, placement, inputs, space.batch_sizes, Path(scratch))
    return times


def compare(archive: Path, space: Space, *, p99_ms: float, seconds: float, final_rounds: int) -> Comparison:
    """Search, sweep, and let the winners take turns; all on one server."""
    bodies = photos(8)
    with tempfile.TemporaryDirectory(prefix="marsmith-tuner-") as scratch:
        maker = VariantMaker(archive, Path(scratch))
        clock = _Clock()
        times = service_times(maker, space, bodies)
        predictions = predict(space.setups, times, p99_ms)
        clock.note("measuring batches")
        with scratch_server(Project(REPOSITORY)) as server:
            live = LiveTrials(server, [maker], jpeg_inputs(bodies))
            try:
                clock.note("starting the server")
                live.warm_up(predictions[0].setup, WARM_S)
                begin = first_rate(predictions, times)
                search, rate = _search(live, predictions, begin, p99_ms, seconds)
                found = best(search, p99_ms)
                clock.note("search")
                sweep = _sweep(live, space.setups, seconds, rate)
                clock.note("sweep")
                last = finalists(found.setup if found else None, sweep, p99_ms)
                finals = _finals(live, last, rate, seconds, final_rounds)
                clock.note("finals")
            finally:
                live.close()
    return Comparison(predictions, search, sweep, finals, found.setup if found else None, p99_ms, clock.seconds)


class _Clock:
    """Notes how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def note(self, step: str) -> None:
        """End a step."""
        now = time.monotonic()
        self.seconds[step], self._last = now - self._last, now


def _attempts(live: LiveTrials, why: str) -> Attempt:
    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        trial = live.attempt(setup, offer)
        result = trial.reason or f"{trial.requests_per_second:.0f} req/s, p99 {trial.p99_ms:.0f} ms"
        say(f"{why}: {setup}, {offer.seconds:g} s at {offer.rate:.0f}/s: {result}")
        return trial

    return attempt


def _search(
    live: LiveTrials, predictions: Sequence[LoadPrediction], rate: float, p99_ms: float, seconds: float
) -> tuple[tuple[Trial, ...], float]:
    """Search; return the trials, and the rate of the last round."""
    rates: list[float] = []
    say_attempt = _attempts(live, "search")

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        rates.append(offer.rate)
        return say_attempt(setup, offer)

    chosen_from = most_promising(predictions, count_for(max(1, int(SHARE_OF_TRIALS * len(predictions)))))
    trials = halve(chosen_from, attempt, p99_ms=p99_ms, rate=rate, seconds=seconds, on_done=live.drop)
    return trials, rates[-1]


def _sweep(live: LiveTrials, every: Sequence[Setup], seconds: float, rate: float) -> tuple[Trial, ...]:
    trials = []
    for setup in every:
        trials += in_turns([setup], _attempts(live, "sweep"), TrialLoad(rate, seconds))
        live.drop(setup)
    return tuple(trials)


def finalists(chosen: Setup | None, sweep: Sequence[Trial], p99_ms: float) -> list[Setup]:
    """Return the set-ups that take turns at the end: the search's choice and the sweep's best ones."""
    ranked = sorted(sweep, key=lambda trial: -trial.score(p99_ms))
    tops = [trial.setup for trial in ranked[:FINALISTS] if trial.score(p99_ms) > 0]
    return tops + ([chosen] if chosen and chosen not in tops else [])


def _finals(live: LiveTrials, last: Sequence[Setup], rate: float, seconds: float, rounds: int) -> tuple[Final, ...]:
    attempt = _attempts(live, "final")
    finals = []
    for number in range(rounds):
        for share in FINAL_SHARES:
            for setup in last if number % 2 == 0 else reversed(last):
                trial = attempt(setup, TrialLoad(share * rate, seconds, seed=number))
                # Failures are slow answers as well: none may make a set-up look quicker.
                p99_ms = trial.p99_ms if not trial.reason and not trial.failed else LOST_MS
                finals.append(Final(setup, share * rate, p99_ms))
    for setup in last:
        live.drop(setup)
    return tuple(finals)


def say(text: str) -> None:
    """Tell what happens."""
    print(text, file=sys.stderr, flush=True)


def numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between them."""
    return tuple(int(each) for each in text.split(","))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, default=ARCHIVE)
    parser.add_argument("--p99-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=4.5, help="of each trial of the sweep (default: %(default)g)")
    parser.add_argument("--cores", type=int, default=2, help="to share out among workers and threads")
    parser.add_argument("--batch-sizes", type=numbers, default=(1, 2, 4, 8))
    parser.add_argument("--delays-ms", type=numbers, default=(1, 5, 20))
    parser.add_argument("--final-rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=200, help="of the replay (default: 200)")
    parser.add_argument("--replay", type=Path, help="a file that --json wrote: the second part alone")
    parser.add_argument("--quick", action="store_true", help="two batch sizes, one delay, trials of a second")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    if args.quick:
        args.batch_sizes, args.delays_ms, args.seconds, args.final_rounds = (1, 8), (1,), 1.0, 1
    if args.replay:
        stored = json.loads(args.replay.read_text(encoding="utf-8"))
        machine, comparison = stored["machine"], from_json(stored["comparison"])
    else:
        space = Space(tuple(placements(args.cores)), args.batch_sizes, args.delays_ms)
        machine = machine_record()
        comparison = compare(
            args.archive, space, p99_ms=args.p99_ms, seconds=args.seconds, final_rounds=args.final_rounds
        )
    budgets = sorted({min(each, len(comparison.sweep)) for each in BUDGETS})
    replayed = regrets(comparison.table, comparison.predictions, comparison.p99_ms, budgets, args.seeds)
    lines = [*sweep_table(comparison), "", *finals_table(comparison), "", verdict(comparison), ""]
    lines += [f"Searches replayed on this table, {args.seeds} seeds:", "", *regret_table(replayed), ""]
    print(machine_line(machine), "", *lines, sep="\n")
    if args.json:
        result = {"machine": machine, "comparison": to_json(comparison), "regrets": [asdict(each) for each in replayed]}
        result |= {"tables": ["\n".join(lines)], "targets": targets(comparison)}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
