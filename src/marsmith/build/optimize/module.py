"""Faster forms of a TorchScript module with the same input and output tensors. Imports torch.

For archives that keep their own handler: it loads the serialized file with ``torch.jit.load``, so the engine is torch,
and preprocessing and softmax are unchanged.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from marsmith.build.optimize.graph import rebuilt_or_same
from marsmith.config.export_spec import Gate, GateLimits
from marsmith.config.form import AUTO, BASE, Form
from marsmith.error_text import useful_line
from marsmith.errors import MarsmithError
from marsmith.export import gate as parity
from marsmith.export.classifier import ImageModule, Probabilities, check_classifier
from marsmith.export.int8.plan import Int8Plan
from marsmith.export.lock import Candidate
from marsmith.export.machine import Machine
from marsmith.export.measure import CLOSE, Effort, Progress, Trial, choose, compete, failed, figure
from marsmith.export.recipes.torchscript import load_module
from marsmith.export.serialize import Files, serialize

FORMS = (BASE, Form("torchscript", "bfloat16", "torch"), Form("torchscript", "int8", "torch"))

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ModuleInputs:
    """Inputs of the module for real requests, each float32 (3, H, W), for three uses."""

    calibration: Sequence[torch.Tensor]
    tuning: Sequence[torch.Tensor]
    validation: Sequence[torch.Tensor]


@dataclass(frozen=True)
class ModuleFound:
    """Result of the measurements.

    Attributes:
        candidates: all forms, in order of preference.
        chosen: the fastest form that passes and is faster than the present module; None if there is none.
        file: file of the chosen form.
        before: images per second of the present module, by batch size.
        sizes: batch sizes of the score.
        classes: number of outputs of the module.
        plan: plan of int8, if it was chosen.
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
    """Make a module in each form of ``precision`` (or ``auto``), compare them, and time those that pass.

    Args:
        path: the TorchScript file.
        inputs: its inputs for real requests.
        folder: folder of the files.
        precision: ``auto`` or one precision.
        batch_size: served batch size.
        threads: number of threads of a worker.
        effort: duration of the timing.
        progress: callbacks for the progress.

    Raises:
        ExportError: the module is not an image classifier.
    """
    torch.set_num_threads(threads)
    wanted = [form for form in FORMS if form == BASE or precision in (AUTO, form.precision)]
    with _Trial(path, inputs, folder, progress) as trial:
        measured = compete(trial, wanted, batch_size, effort, progress)
    judged = [_refused_if_not_faster(one) for one in measured.candidates]
    chosen = choose([one for one in judged if precision in (AUTO, one.what.precision)], measured.sizes)
    file = trial.files[chosen.what].serialized_file if chosen else None
    plan = trial.plan if chosen and chosen.what.precision == "int8" else None
    return ModuleFound(judged, chosen, file, measured.eager, measured.sizes, trial.classes, plan)


class _Trial(Trial):
    """One module and its candidates in this process, where the old module runs too.

    Attributes:
        files: files of the forms that could be made.
        plan: latest plan of int8.
        classes: number of outputs of the module.
    """

    def __init__(self, path: Path, inputs: ModuleInputs, folder: Path, progress: Progress) -> None:
        super().__init__("cpu", Machine.here(), progress)
        self.files: dict[Form, Files] = {}
        self.plan: Int8Plan | None = None
        self._inputs, self._folder = inputs, folder
        old: Forward = load_module(path)
        self.eager = partial(self._rate, old)
        image = inputs.validation[0]
        self.classes = check_classifier(load_module(path), image, path.name)
        self._module = ImageModule(rebuilt_or_same(load_module(path), (image.shape[1], image.shape[2]))).eval()
        with torch.inference_mode():
            outputs = parity.eager_outputs(old, inputs.validation)
        sums = outputs.sum(1)
        self._logits = bool((outputs < 0).any() or (sums - 1).abs().max() > 1e-3)
        self._wanted = outputs.softmax(1) if self._logits else outputs

    def _made(self, form: Form) -> Candidate:
        self._progress.step(f"making {form}")
        try:
            candidate = self._attempt(form, self._found_plan(form, 0))
            if candidate.verdict == "refused" and self.plan:
                self._progress.step(f"int8 is refused ({candidate.reason}): searching again, with a higher aim")
                higher = self._found_plan(form, 1)
                # The same plan would give the same bytes, and the same verdict.
                candidate = candidate if higher == self.plan else self._attempt(form, higher)
        except (MarsmithError, RuntimeError) as error:
            return failed(form, useful_line(error))
        return candidate

    def _attempt(self, form: Form, plan: Int8Plan | None) -> Candidate:
        self.plan = plan
        files = self.files[form] = self._serialized(form, plan)
        started = time.perf_counter()
        loaded = load_module(files.serialized_file)
        load_s = time.perf_counter() - started
        with torch.inference_mode():
            shown = Probabilities(loaded, needed=self._logits)
            figures = parity.compare(self._wanted, shown, self._inputs.validation)
        problems = parity.problems(figures, limits_of(form.precision))
        if not problems:
            self.rates[form] = partial(self._rate, loaded)
        return Candidate(
            form=str(form),
            verdict="refused" if problems else "passed",
            reason="; ".join(problems),
            figures=figures.figures(),
            bytes=files.serialized_file.stat().st_size,
            load_s=figure(load_s),
        )

    def _serialized(self, form: Form, plan: Int8Plan | None) -> Files:
        place = self._folder / str(form).replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        calibration = self._inputs.calibration
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return serialize(self._module, form, images=calibration, folder=place, calibration=calibration, int8=plan)

    def _found_plan(self, form: Form, attempt: int) -> Int8Plan | None:
        if form.precision != "int8":
            return None
        from marsmith.export.int8 import quantize as int8

        graph = Probabilities(self._module, needed=self._logits).eval()
        agreement = int8.ExpectedAgreement.of(graph, self._inputs.tuning)
        wanted = int8.aim(limits_of("int8").top1_agreement or 0.0, attempt)
        found = int8.search_plan(graph, form, self._inputs.calibration, agreement, wanted, self._progress.step)
        # The graph of the search has a softmax around the module, and thus a prefix before each name.
        names = tuple(name.removeprefix("module.") for name in found.float_layers)
        return replace(found, float_layers=names)

    def _rate(self, forward: Forward, size: int, seconds: float) -> float:
        images = self._inputs.validation
        batch = torch.stack([images[i % len(images)] for i in range(size)])
        done, started = 0, time.perf_counter()
        # The signature that the stock handlers use.
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


def _refused_if_not_faster(one: Candidate) -> Candidate:
    """Refuse forms that are not faster than the present module by more than the noise of timing."""
    if one.verdict != "passed" or one.speedup is None or one.speedup > 1 + CLOSE:
        return one
    reason = f"not faster than the archive's own module: {one.speedup:.2f} times its images per second"
    return one.model_copy(update={"verdict": "refused", "reason": reason})
