"""A TorchScript module made anew in faster forms that take and give the very same tensors. Imports torch.

For archives whose own handler stays: it loads the serialized file with ``torch.jit.load``, so the engine is torch, and
preprocessing and softmax stay where they are.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from marsmith.build.optimize.graph import rebuilt_or_same
from marsmith.config.export_spec import Gate, GateLimits
from marsmith.config.form import AUTO, BASE, Form
from marsmith.error_text import useful_line
from marsmith.errors import MarsmithError
from marsmith.export import gate as parity
from marsmith.export import measure as export_choice
from marsmith.export.classifier import ImageModule, Probabilities, check_classifier
from marsmith.export.int8.plan import Int8Plan
from marsmith.export.lock import IMPOSSIBLE, Candidate
from marsmith.export.machine import Machine, obstacle
from marsmith.export.measure import SHOWN_SIZES, Effort, Progress
from marsmith.export.recipes.torchscript import load_module
from marsmith.export.serialize import Files, serialize

FORMS = (BASE, Form("torchscript", "bfloat16", "torch"), Form("torchscript", "int8", "torch"))
# The search for int8 aims this far above the gate, as a share of what is left to 1.
_MARGIN = 0.5

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ModuleInputs:
    """What the module was given for real requests, each float32 (3, H, W), for three uses."""

    calibration: Sequence[torch.Tensor]
    tuning: Sequence[torch.Tensor]
    validation: Sequence[torch.Tensor]


@dataclass(frozen=True)
class ModuleFound:
    """What was found.

    Attributes:
        candidates: every form, in the order of preference.
        chosen: the fastest that passes and is faster than the module as it is; None where none is.
        file: of the chosen form.
        before: images per second of the module as it is, by batch size.
        sizes: batch sizes that scores are taken over.
        classes: how many outputs the module has.
        plan: how int8 was done, where it was chosen.
    """

    candidates: list[Candidate]
    chosen: Candidate | None
    file: Path | None
    before: dict[str, float]
    sizes: list[int]
    classes: int
    plan: Int8Plan | None


def export_module(
    path: Path,
    inputs: ModuleInputs,
    folder: Path,
    *,
    precision: str,
    batch_size: int,
    threads: int,
    effort: Effort,
    progress: Progress,
) -> ModuleFound:
    """Make a module anew in each form of ``precision`` (or ``auto``), judge them, and time those that pass.

    Args:
        path: the TorchScript file.
        inputs: what it was given for real requests.
        folder: where files go.
        precision: ``auto`` or one.
        batch_size: that is served.
        threads: that a worker computes with.
        effort: how long to time.
        progress: is told how far it is.

    Raises:
        ExportError: it is no image classifier.
    """
    torch.set_num_threads(threads)
    trial = _Trial(path, inputs, folder, progress)
    wanted = [form for form in FORMS if form == BASE or precision in (AUTO, form.precision)]
    for index, form in enumerate(wanted):
        progress.candidates(index, len(wanted), str(form))
        trial.add(form)
    progress.candidates(len(wanted), len(wanted), "")
    sizes = export_choice.scored_sizes(batch_size)
    before, rates = trial.timed(sorted({*SHOWN_SIZES, *sizes}), effort)
    judged = [
        _refused_if_not_faster(_with_rates(one, rates.get(one.what, {}), before, sizes)) for one in trial.candidates
    ]
    chosen = export_choice.choose([one for one in judged if precision in (AUTO, one.what.precision)], sizes)
    file = trial.files[chosen.what].serialized_file if chosen else None
    plan = trial.plan if chosen and chosen.what.precision == "int8" else None
    return ModuleFound(judged, chosen, file, before, sizes, trial.classes, plan)


class _Trial:
    """One module and its candidates."""

    def __init__(self, path: Path, inputs: ModuleInputs, folder: Path, progress: Progress) -> None:
        self.candidates: list[Candidate] = []
        self.files: dict[Form, Files] = {}
        self.plan: Int8Plan | None = None
        self._inputs, self._folder, self._progress = inputs, folder, progress
        self._old: Forward = load_module(path)
        image = inputs.validation[0]
        self.classes = check_classifier(load_module(path), image, path.name)
        self._module = ImageModule(rebuilt_or_same(load_module(path), (image.shape[1], image.shape[2]))).eval()
        self._loaded: dict[Form, Forward] = {}
        with torch.inference_mode():
            outputs = parity.eager_outputs(self._old, inputs.validation)
        sums = outputs.sum(1)
        self._logits = bool((outputs < 0).any() or (sums - 1).abs().max() > 1e-3)
        self._wanted = outputs.softmax(1) if self._logits else outputs

    def add(self, form: Form) -> None:
        """Make and judge a form."""
        self._progress.step(f"making {form}")
        problem = obstacle(form, "cpu", Machine.here())
        try:
            made = None if problem else self._made(form)
            candidate = made or Candidate(form=str(form), verdict=IMPOSSIBLE, reason=problem or "")
        except (MarsmithError, RuntimeError) as error:
            reason = useful_line(error).removeprefix(f"{form} ")
            candidate = Candidate(form=str(form), verdict="failed", reason=reason)
        if candidate.verdict != "passed":
            self._loaded.pop(form, None)
            self._progress.step(f"{form} is {candidate.verdict}: {candidate.reason}")
        self.candidates.append(candidate)

    def _made(self, form: Form) -> Candidate:
        place = self._folder / str(form).replace("/", "-")
        place.mkdir(parents=True)
        if form.precision == "int8":
            self.plan = self._found_plan(form)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calibration = self._inputs.calibration
            files = serialize(
                self._module, form, images=calibration, folder=place, calibration=calibration, int8=self.plan
            )
        started = time.perf_counter()
        loaded = self._loaded[form] = load_module(files.serialized_file)
        load_s = time.perf_counter() - started
        with torch.inference_mode():
            shown = Probabilities(loaded, needed=self._logits)
            figures = parity.compare(self._wanted, shown, self._inputs.validation)
        self.files[form] = files
        problems = parity.problems(figures, limits_of(form.precision))
        return Candidate(
            form=str(form),
            verdict="refused" if problems else "passed",
            reason="; ".join(problems),
            figures=figures.figures(),
            bytes=files.serialized_file.stat().st_size,
            load_s=float(f"{load_s:.3g}"),
        )

    def _found_plan(self, form: Form) -> Int8Plan:
        from marsmith.export.int8 import quantize as int8

        graph = Probabilities(self._module, needed=self._logits).eval()
        tuning = list(self._inputs.tuning)
        with torch.inference_mode():
            best = parity.eager_outputs(graph, tuning).argmax(1)

        def agreement(forward: Forward) -> float:
            with torch.inference_mode():
                outputs = torch.cat([forward(torch.stack(tuning[i : i + 8])) for i in range(0, len(tuning), 8)])
            return float((outputs.argmax(1) == best).double().mean())

        wanted = limits_of("int8").top1_agreement or 0.0
        wanted += (1 - wanted) * _MARGIN
        found = int8.search_plan(graph, form, self._inputs.calibration, agreement, wanted, self._progress.step)
        # The graph of the search has a softmax around the module, and so one more name in front.
        names = tuple(name.removeprefix("module.") for name in found.float_layers)
        return replace(found, float_layers=names)

    def timed(self, sizes: Sequence[int], effort: Effort) -> tuple[dict[str, float], dict[Form, dict[str, float]]]:
        """Return images per second by batch size: of the module as it is, and of each form that passes."""
        contestants: list[tuple[Form | None, Forward]] = [(None, self._old), *self._loaded.items()]
        turns: dict[tuple[Form | None, int], list[float]] = {}
        self._progress.step(f"timing {len(contestants)} at batch sizes {', '.join(map(str, sizes))}, taking turns")
        for number in range(effort.rounds + 1):
            self._progress.rounds(number, effort.rounds + 1)
            for index in range(len(contestants)):
                form, forward = contestants[(index + number) % len(contestants)]
                for size in sizes:
                    rate = self._rate(forward, size, effort.turn_s if number else 0.0)
                    if number:
                        turns.setdefault((form, size), []).append(rate)
        self._progress.rounds(effort.rounds + 1, effort.rounds + 1)
        medians = {key: float(f"{statistics.median(rates):.4g}") for key, rates in turns.items()}
        before = {str(size): medians[None, size] for size in sizes}
        return before, {form: {str(size): medians[form, size] for size in sizes} for form in self._loaded}

    def _rate(self, forward: Forward, size: int, seconds: float) -> float:
        images = self._inputs.validation
        batch = torch.stack([images[i % len(images)] for i in range(size)])
        done, started = 0, time.perf_counter()
        # As the stock handlers and those derived from them call it.
        with torch.no_grad():
            while True:
                forward(batch)
                done += size
                elapsed = time.perf_counter() - started
                if done > size and elapsed >= seconds:
                    return done / elapsed


def limits_of(precision: str) -> GateLimits:
    """Return the gate's limits."""
    return Gate().limits(precision)


def _with_rates(one: Candidate, rates: dict[str, float], before: dict[str, float], sizes: Sequence[int]) -> Candidate:
    if not rates:
        return one
    speedup = export_choice.score(rates, sizes) / export_choice.score(before, sizes)
    return one.model_copy(update={"images_per_second": rates, "speedup": float(f"{speedup:.4g}")})


def _refused_if_not_faster(one: Candidate) -> Candidate:
    """Refuse what is no faster than the module as it is, by more than timing can tell."""
    if one.verdict != "passed" or one.speedup is None or one.speedup > 1 + export_choice.CLOSE:
        return one
    reason = f"not faster than the archive's own module: {one.speedup:.2f} times its images per second"
    return one.model_copy(update={"verdict": "refused", "reason": reason})
