"""Measure candidates, each in a process of its own, and choose the form by the figures.

The candidates are timed in turns, in another order each round, so that a slow phase of the machine affects all of them.
A figure is the median of its turns.

The score of a form is the geometric mean of its images per second at batch size 1 and at the batch size of the spec, so
that both count equally. Forms with scores within ``CLOSE`` of the fastest count as equally fast. Of those the first in
the order of ``formats.form.SUPPORTED`` is chosen: float32 before lower precisions, torch before other engines.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from marsmith.config.form import BASE, Form
from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.lock import IMPOSSIBLE, Candidate
from marsmith.export.machine import Machine, obstacle
from marsmith.export.messages import JobRequest, JobResult
from marsmith.export.process import JobProcess

# Batch sizes that are always in the tables, besides the served one.
SHOWN_SIZES = (1, 8)


@dataclass(frozen=True)
class Effort:
    """Duration of the timing.

    Attributes:
        rounds: number of turns of each candidate.
        turn_s: duration of a turn, in seconds.
    """

    rounds: int = 5
    turn_s: float = 0.25


@dataclass(frozen=True)
class Progress:
    """Callbacks for the progress.

    Attributes:
        step: called with a description of each step.
        candidates: called with the number of finished candidates, their total number, and the next one.
        rounds: called with the number of finished rounds of timing, and their total number.
    """

    step: Callable[[str], None] = lambda _: None
    candidates: Callable[[int, int, str], None] = lambda *_: None
    rounds: Callable[[int, int], None] = lambda *_: None


USUAL_EFFORT = Effort()
SILENT = Progress()
Rate = Callable[[int, float], float]


@dataclass(frozen=True)
class Measured:
    """Result of the measurements.

    Attributes:
        candidates: all forms, in order of preference.
        results: results of the forms that could be made.
        eager: images per second of the eager float32 module, by batch size; empty if nothing was timed.
        sizes: batch sizes of the score.
    """

    candidates: list[Candidate]
    results: dict[str, JobResult] = field(default_factory=dict)
    eager: dict[str, float] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)


def measure(
    template: JobRequest,
    wanted: Sequence[Form],
    folder: Path,
    *,
    batch_size: int,
    machine: Machine,
    device: str = "cpu",
    must_be_faster: bool = True,
    effort: Effort = USUAL_EFFORT,
    progress: Progress = SILENT,
) -> Measured:
    """Make each form in a folder below ``folder``, compare it with the limits, and time those that pass.

    Args:
        template: request without form and folder.
        wanted: forms in order of preference; the base is made in addition if speed matters.
        folder: an empty folder.
        batch_size: served batch size.
        machine: this machine.
        device: ``cpu`` or ``cuda``.
        must_be_faster: whether to refuse forms that are slower than the base.
        effort: duration of the timing.
        progress: callbacks for the progress.

    Raises:
        ExportError: the model cannot be exported: not even the base can be made.
    """
    forms = list(dict.fromkeys([BASE, *wanted]))
    with _Trial(template, folder, device, machine, progress) as trial:
        measured = compete(trial, forms, batch_size, effort, progress)
    judged = refuse_slow(measured.candidates, measured.sizes) if must_be_faster else measured.candidates
    return replace(measured, candidates=judged, results=trial.results)


def compete(trial: Trial, forms: Sequence[Form], batch_size: int, effort: Effort, progress: Progress) -> Measured:
    """Make and judge each form, and time those that pass against what the trial compares them with.

    Args:
        trial: makes them.
        forms: in the order of preference.
        batch_size: that is served.
        effort: how long to time.
        progress: callbacks for the progress.
    """
    for index, form in enumerate(forms):
        progress.candidates(index, len(forms), str(form))
        trial.add(form)
    progress.candidates(len(forms), len(forms), "")
    sizes = scored_sizes(batch_size)
    eager, rates = _timed(trial, sorted({*SHOWN_SIZES, *sizes}), effort, progress)
    timed = [_with_rates(trial.found[form], rates.get(form, {}), eager, sizes) for form in forms]
    return Measured(timed, eager=eager, sizes=sizes)


class Trial(ExitStack, ABC):
    """The candidates of one run; what those that are timed need stays until its end.

    Attributes:
        found: every form that was added.
        rates: images per second, by batch size and seconds to time, of each form that is timed.
        eager: the same of what they are compared with.
    """

    eager: Rate

    def __init__(self, device: str, machine: Machine, progress: Progress) -> None:
        super().__init__()
        self.found: dict[Form, Candidate] = {}
        self.rates: dict[Form, Rate] = {}
        self._device, self._machine, self._progress = device, machine, progress

    def add(self, form: Form) -> None:
        """Make a form and compare it with the limits.

        Raises:
            ExportError: it is the one without which nothing can be had.
        """
        problem = obstacle(form, self._device, self._machine)
        candidate = Candidate(form=str(form), verdict=IMPOSSIBLE, reason=problem) if problem else self._made(form)
        self.found[form] = candidate
        if candidate.verdict != "passed":
            self._progress.step(f"{candidate.form} is {candidate.verdict}: {candidate.reason}")

    @abstractmethod
    def _made(self, form: Form) -> Candidate:
        """Make and judge a form that the machine can have; note in ``rates`` how it is timed if it is to be."""


class _Trial(Trial):
    """The forms of a spec, each in a process of its own; the processes of those that are timed stay until the end.

    Attributes:
        results: of those that could be made, by form.
    """

    def __init__(self, template: JobRequest, folder: Path, device: str, machine: Machine, progress: Progress) -> None:
        super().__init__(device, machine, progress)
        self.results: dict[str, JobResult] = {}
        self._template, self._folder = template, folder

    def _made(self, form: Form) -> Candidate:
        with ExitStack() as started:
            job = started.enter_context(JobProcess(self._request(form)))
            try:
                result = job.export(self._progress.step)
            except ExportError as error:
                if form == BASE:
                    raise
                return failed(form, useful_line(error.message), error.tip)
            self.results[str(form)] = result
            candidate = _judged(form, result)
            if candidate.verdict == "passed" or form == BASE:
                self.rates[form] = partial(job.rate, "form")
                self.push(started.pop_all())
            if form == BASE:
                self.eager = partial(job.rate, "eager")
            return candidate

    def _request(self, form: Form) -> JobRequest:
        place = self._folder / str(form).replace("/", "-")
        place.mkdir(parents=True)
        return replace(self._template, form=str(form), folder=str(place))


def failed(form: Form, reason: str, tip: str | None = None) -> Candidate:
    """Return the candidate of a form that could not be made."""
    said = reason.removeprefix(f"{form} ") + (f" ({tip})" if tip else "")
    return Candidate(form=str(form), verdict="failed", reason=said)


def _judged(form: Form, result: JobResult) -> Candidate:
    refused = bool(result.problems)
    return Candidate(
        form=str(form),
        verdict="refused" if refused else "passed",
        reason=f"{'; '.join(result.problems)}; {result.tip}" if refused else "",
        figures=result.parity,
        bytes=result.bytes,
        load_s=figure(result.load_s),
    )


def _timed(
    trial: Trial, sizes: Sequence[int], effort: Effort, progress: Progress
) -> tuple[dict[str, float], dict[Form, dict[str, float]]]:
    """Return images per second by batch size: of what the forms are compared with, and of each that is timed."""
    contestants: list[tuple[Form | None, Rate]] = [(None, trial.eager), *trial.rates.items()]
    turns: dict[tuple[Form | None, int], list[float]] = {}
    progress.step(f"timing {len(contestants)} at batch sizes {', '.join(map(str, sizes))}, taking turns")
    for number in range(effort.rounds + 1):
        progress.rounds(number, effort.rounds + 1)
        for index in range(len(contestants)):
            form, rate = contestants[(index + number) % len(contestants)]
            for size in sizes:
                # The first round warms up: engines compile for a batch size when they first see it.
                reached = rate(size, effort.turn_s if number else 0.0)
                if number:
                    turns.setdefault((form, size), []).append(reached)
    progress.rounds(effort.rounds + 1, effort.rounds + 1)
    medians = {key: figure(statistics.median(rates)) for key, rates in turns.items()}
    eager = {str(size): medians[None, size] for size in sizes}
    return eager, {form: {str(size): medians[form, size] for size in sizes} for form in trial.rates}


def _with_rates(
    candidate: Candidate, rates: dict[str, float], eager: Mapping[str, float], sizes: Sequence[int]
) -> Candidate:
    if not rates:
        return candidate
    speedup = score(rates, sizes) / score(eager, sizes)
    return candidate.model_copy(update={"images_per_second": rates, "speedup": figure(speedup)})


def figure(value: float) -> float:
    """Return a number with the digits that measuring gives."""
    return float(f"{value:.4g}")


CLOSE = 0.03


def scored_sizes(batch_size: int) -> list[int]:
    """Return the batch sizes of the score."""
    return sorted({1, batch_size})


def score(images_per_second: Mapping[str, float], sizes: Sequence[int]) -> float:
    """Return the geometric mean of the throughput over the batch sizes."""
    return math.prod(images_per_second[str(size)] for size in sizes) ** (1 / len(sizes))


def refuse_slow(candidates: Sequence[Candidate], sizes: Sequence[int]) -> list[Candidate]:
    """Refuse forms that are slower than the base, float32 TorchScript in torch, if it was timed."""
    base = next((one for one in candidates if one.what == BASE and one.images_per_second), None)
    if base is None:
        return list(candidates)
    limit = score(base.images_per_second, sizes)
    return [_refused_if_slow(one, limit, sizes) for one in candidates]


def _refused_if_slow(candidate: Candidate, limit: float, sizes: Sequence[int]) -> Candidate:
    if candidate.what == BASE or candidate.verdict != "passed" or not candidate.images_per_second:
        return candidate
    reached = score(candidate.images_per_second, sizes)
    if reached >= limit:
        return candidate
    reason = (
        f"slower than {BASE} on this machine: {reached:.1f} instead of {limit:.1f} images per second, "
        f"{1 - reached / limit:.0%} less; take float32, another engine, or gate.must_be_faster: false"
    )
    return candidate.model_copy(update={"verdict": "refused", "reason": reason})


def choose(candidates: Sequence[Candidate], sizes: Sequence[int]) -> Candidate | None:
    """Return the fastest form that passed, as described in this module; None if none passed.

    Args:
        candidates: candidates in order of preference.
        sizes: batch sizes of the score; see ``scored_sizes``.
    """
    passed = [one for one in candidates if one.verdict == "passed"]
    timed = [one for one in passed if one.images_per_second]
    if not timed:
        return passed[0] if passed else None
    best = max(score(one.images_per_second, sizes) for one in timed)
    return next(one for one in timed if score(one.images_per_second, sizes) >= best * (1 - CLOSE))
