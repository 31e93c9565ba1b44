"""The tuner: measure, predict, try, verify. See ``marsmith.loadtest.tune``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marsmith.archive.admit import admit
from marsmith.child_processes import temporary_folder
from marsmith.config import admission_policy
from marsmith.config.edit import Edit
from marsmith.config.model_spec import ModelSpec
from marsmith.errors import MarsmithError, ServerError
from marsmith.inputs import Input
from marsmith.loadtest.bench import Load
from marsmith.loadtest.measurement import Measurement
from marsmith.loadtest.tune.rates import VERIFYING_RATES, largest_rate, majority_of_three, schedule
from marsmith.loadtest.tune.search import (
    LoadPrediction,
    Trial,
    TrialLoad,
    best,
    first_rate,
    halve,
    most_promising,
    next_rate,
    predict,
)
from marsmith.loadtest.tune.setup import BATCH_SIZES, DELAYS_MS, Placement, ServiceTime, Setup, placements, setups
from marsmith.loadtest.tune.trials import LiveTrials, measure_service_time
from marsmith.loadtest.tune.variant import VariantMaker
from marsmith.loadtest.verdict import Verdict, VerdictLine, judge
from marsmith.project import Project
from marsmith.server.scratch import scratch_server

# A queue that takes longer than this to process does not answer anyone in time.
QUEUE_S = 2.0


@dataclass(frozen=True)
class TuneOptions:
    """What to tune, and the limits to meet.

    Attributes:
        archives: archives of one model; several of them compare precisions or engines.
        inputs: requests to measure with.
        p99_ms: limit of the 99th percentile, in milliseconds.
        rps: rate to hold, in requests per second. None: as much as the limit allows.
        minutes: approximate time limit, in minutes.
        cores: number of cores of this machine.
        batch_sizes, delays_ms: values to choose from; delays in milliseconds.
        most_trials: maximum number of set-ups to try on the server. None: as many as the time allows.
    """

    archives: tuple[Path, ...]
    inputs: tuple[Input, ...]
    p99_ms: float
    rps: float | None
    minutes: float
    cores: int
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    delays_ms: tuple[int, ...] = DELAYS_MS
    most_trials: int | None = None


@dataclass(frozen=True)
class Tuning:
    """Result of a tuning.

    Attributes:
        options: the options.
        times: batch times of each placement that loads.
        predictions: every set-up, best first.
        trials: trials on the server, in order.
        chosen: the best trial.
        held_rps: largest rate of Poisson arrivals at which the chosen set-up held the limit, in requests per second.
        held: measurement at that rate; None if no rate held.
        at_rps: measurement at the requested rate; None if no rate was requested.
        seconds: total duration, in seconds.
        verify_s: duration of each verification, in seconds.
        advice: what to change to meet a limit that is not met.
    """

    options: TuneOptions
    times: dict[Placement, ServiceTime]
    predictions: tuple[LoadPrediction, ...]
    trials: tuple[Trial, ...]
    chosen: Trial
    held_rps: float
    held: Measurement | None
    at_rps: Measurement | None
    seconds: float
    verify_s: float = math.inf
    advice: tuple[str, ...] = field(default=())

    @property
    def is_met(self) -> bool:
        """Whether the limit is held, at the requested rate if there is one."""
        return self.verdict.held

    @property
    def verdict(self) -> Verdict:
        """The verdict on the limit and the requested rate."""
        limit = self.options.p99_ms
        if self.at_rps:
            return judge(self.at_rps, p99_ms=limit, rps=self.options.rps, seconds=self.verify_s)
        if self.held:
            return judge(self.held, p99_ms=limit)
        return Verdict((VerdictLine("p99Ms", limit, self.chosen.p99_ms, held=False),), targets=True)

    def serving(self) -> dict[str, Any]:
        """Return the keys for the block ``serving`` of the spec."""
        setup = self.chosen.setup
        rate = self.times[setup.placement].most_per_second * setup.placement.workers
        return {
            "minWorkers": setup.placement.workers,
            "maxWorkers": setup.placement.workers,
            "batchSize": setup.batch_size,
            "maxBatchDelay": setup.max_batch_delay_ms,
            "jobQueueSize": max(2 * setup.placement.workers * setup.batch_size, math.ceil(rate * QUEUE_S)),
        }

    def handler_settings(self) -> dict[str, Any]:
        """Return the keys for the block ``handler.settings`` of the spec."""
        return {"threads": self.chosen.setup.placement.threads}


def tune(project: Project, options: TuneOptions, on_step: Callable[[str], None] = lambda _: None) -> Tuning:
    """Tune on a separate server. A running server is not changed, but competes for the cores.

    Raises:
        ServerError: no set-up works.
        ArchiveError: an archive is damaged, or the project does not admit it.
    """
    begun = time.monotonic()
    policy = admission_policy(project)
    for warning in (text for path in options.archives for text in admit(path, policy).warnings):
        on_step(warning)
    with temporary_folder("marsmith-tune-") as scratch:
        makers = [VariantMaker(path, _made(scratch / str(index))) for index, path in enumerate(options.archives)]
        times = _service_times(options, makers, scratch, on_step)
        on_step("predicting every set-up")
        predictions = predict(setups(times, options.batch_sizes, options.delays_ms), times, options.p99_ms)
        left_s = options.minutes * 60 - (time.monotonic() - begun)
        with scratch_server(project) as server:
            return _on_server(options, server, makers, times, predictions, begun, left_s, on_step)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _service_times(
    options: TuneOptions, makers: Sequence[VariantMaker], scratch: Path, on_step: Callable[[str], None]
) -> dict[Placement, ServiceTime]:
    times: dict[Placement, ServiceTime] = {}
    reasons = []
    for placement in placements(options.cores, len(makers)):
        on_step(f"measuring batches: {_words(placement, makers)}")
        try:
            times[placement] = measure_service_time(
                makers[placement.archive], placement, options.inputs, options.batch_sizes, scratch
            )
        except MarsmithError as error:
            reasons.append(f"{_words(placement, makers)}: {error.message}")
    if not times:
        raise ServerError("no worker could be measured: " + "; ".join(reasons), tip="marsmith run ARCHIVE shows why")
    return times


def _words(placement: Placement, makers: Sequence[VariantMaker]) -> str:
    archive = f"archive {placement.archive + 1}, " if len(makers) > 1 else ""
    return f"{archive}{placement.workers} x {placement.threads} threads"


def _on_server(
    options: TuneOptions,
    server: Project,
    makers: Sequence[VariantMaker],
    times: dict[Placement, ServiceTime],
    predictions: tuple[LoadPrediction, ...],
    begun: float,
    left_s: float,
    on_step: Callable[[str], None],
) -> Tuning:
    rate = first_rate(predictions, times)
    plan = schedule(options.minutes, left_s=left_s, rate=rate, setups=len(predictions))
    live = LiveTrials(server, makers, options.inputs)

    def attempt(setup: Setup, offer: TrialLoad) -> Trial:
        on_step(f"trying {setup} at {offer.rate:.3g} requests per second, {offer.seconds:.3g} s")
        return live.attempt(setup, offer)

    try:
        chosen_from = most_promising(predictions, options.most_trials or plan.trials)
        on_step("warming the server up")
        live.warm_up(chosen_from[0], plan.warm_up_s)
        trials = halve(chosen_from, attempt, p99_ms=options.p99_ms, rate=rate, seconds=plan.trial_s, on_done=live.drop)
        winner = best(trials, options.p99_ms)
        if winner is None:
            raise ServerError("no set-up answered: " + "; ".join({trial.reason for trial in trials}))

        def at(rate: float) -> Measurement:
            on_step(f"verifying {winner.setup} at {rate:.3g} requests per second, {plan.verify_s:.3g} s")
            return live.load(winner.setup, Load(rps=rate, seconds=plan.verify_s, warm_up_s=1.0))

        def held_at(rate: float) -> Measurement | None:
            measured = at(rate)
            return measured if measured.holds(options.p99_ms) else None

        live.register(winner.setup)
        start = next_rate(winner.requests_per_second, winner, options.p99_ms)
        held_rps, held = largest_rate(
            lambda rate: majority_of_three(lambda: held_at(rate)), start, steps=VERIFYING_RATES
        )
        at_rps = at(options.rps) if options.rps else None
    finally:
        live.close()
    seconds = time.monotonic() - begun
    tuning = Tuning(options, times, predictions, trials, winner, held_rps, held, at_rps, seconds, plan.verify_s)
    return tuning if tuning.is_met else Tuning(**{**vars(tuning), "advice": advice(tuning)})


def advice(tuning: Tuning) -> tuple[str, ...]:
    """Return suggestions to meet a limit that is not met."""
    options, one = tuning.options, min(time_of(1) for time_of in tuning.times.values()) * 1000
    if one > options.p99_ms:
        faster = "a faster form does (marsmith export --precision auto --engine auto), or a smaller model or input"
        return (f"a request alone takes {one:.0f} ms in the worker: no set-up holds {options.p99_ms:g} ms; {faster}",)
    lines = []
    if options.rps and tuning.held_rps:
        cores = math.ceil(options.cores * options.rps / tuning.held_rps)
        lines.append(f"about {cores} cores like these {options.cores} for {options.rps:g} requests per second")
    most = max(time.most_per_second * placement.workers for placement, time in tuning.times.items())
    lines.append(f"a faster form of the model: its workers reach {most:.0f} items per second at most, without a server")
    if tuning.chosen.p99_ms:
        reached = f"{tuning.chosen.requests_per_second:.0f} requests per second"
        lines.append(f"a limit of about {math.ceil(tuning.chosen.p99_ms)} ms, at {reached}")
    return tuple(lines)


def spec_edits(spec: ModelSpec, tuning: Tuning) -> list[Edit]:
    """Return the edits of a spec that apply the chosen set-up."""
    blocks = {("serving",): tuning.serving(), ("handler", "settings"): tuning.handler_settings()}
    present = {("serving",): "serving" in spec.model_fields_set, ("handler", "settings"): bool(spec.handler.settings)}
    edits = []
    for path, values in blocks.items():
        if present[path]:
            edits += [Edit("set", (*path, key), value) for key, value in values.items()]
        else:
            edits.append(Edit("set", path, values))
    return edits
