"""Export job: makes one form of one model, compares it with the eager module and, on request, times it. Imports torch.

It runs in a process of its own: see ``export_process``.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from marsmith.config.export_spec import ExportSpec, GateLimits
from marsmith.config.form import BASE, Form
from marsmith.config.source_names import RecipeSource
from marsmith.error_text import typed_line
from marsmith.errors import ExportError, MarsmithError
from marsmith.export import gate as parity
from marsmith.export.classifier import build_classifier, labels_of, signature
from marsmith.export.formats.torchscript import load_torchscript
from marsmith.export.image_graph import ImageGraph
from marsmith.export.job_images import JobImages, load_in_engine
from marsmith.export.messages import JobRequest, JobResult
from marsmith.export.onnx_file import OnnxJob
from marsmith.export.recipes.recipe import Recipe
from marsmith.export.recipes.source import open_recipe
from marsmith.export.recipes.weights import RANDOM_SEED, Weights, apply_weights, load_weights
from marsmith.export.tensors import TensorJob
from marsmith.export.tracing.checks import check_eager, check_exported, reason_against, reason_against_branches, taken
from marsmith.file_errors import access_error

if TYPE_CHECKING:
    from marsmith.export.int8.plan import Int8Plan

_TIPS = {
    "int8": "give more images under export.calibration, lower export.gate.int8.top1_agreement if this is intended, "
    "or take --precision bfloat16 or float32",
    "bfloat16": "take --precision float32, or lower export.gate.bfloat16 if this is intended",
    "float16": "take --precision bfloat16 or float32, or lower export.gate.float16 if this is intended",
    "float32": "try export.method: script (or trace), or set export.gate.float32 if the difference is intended",
}

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Job:
    """A model during the export of one form.

    Attributes:
        request: the request.
        recipe: recipe of the model.
        on_step: called with a description of each step.
    """

    request: JobRequest
    recipe: Recipe
    on_step: Callable[[str], None]
    weights: Weights = field(init=False)
    graph: torch.nn.Module = field(init=False)
    images: JobImages = field(init=False)
    exported: Forward = field(init=False)
    searched: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.form = Form.parse(self.request.form)
        self.spec = ExportSpec.model_validate(self.request.export)
        self.limits = self.spec.gate.limits(self.form.precision)
        torch.set_num_threads(self.request.threads)

    # Making ---------------------------------------------------------------------------------------------------------

    def run(self) -> JobResult:
        """Build, serialize, load and compare.

        Raises:
            ExportError: the recipe, the weights or the form cannot be used, or the outputs are invalid. Exceeded limits
                are not an error, but part of the result.
        """
        self._build()
        reason = reason_against(self.graph, self.form)
        if reason:
            raise ExportError(f"{self.form}: {reason}", tip="export it as torchscript, float32, torch or openvino")
        self.images = JobImages.read(self.request, self.recipe.preprocessing)
        branches = check_eager(self.graph, self.images.traced_with, method=self.spec.method)
        if reason := reason_against_branches(branches, self.form):
            raise ExportError(
                reason, tip="export it as torchscript, in another precision than int8, with method: script"
            )
        rows = taken(self.graph, [(image,) for image in self.images.traced_with])
        self.images = replace(self.images, traced_with=tuple(image for (image,) in rows))
        want = self._wanted()
        classes = _classes(want)
        names = labels_of(self.recipe.labels, classes)
        plan = self._plan(0)
        result = self._attempt(want, names, plan)
        if plan is not None and result.problems and self.searched:
            self.on_step(f"int8 is refused ({result.problems[0]}): searching again, with a higher aim")
            higher = self._plan(1)
            # The same plan would give the same bytes, and the same verdict.
            return result if higher == plan else self._attempt(want, names, higher)
        return result

    def _attempt(self, want: torch.Tensor, names: dict[str, str], plan: Int8Plan | None) -> JobResult:
        self.on_step(f"making {self.form}")
        files = self._serialize(plan)
        started = time.perf_counter()
        self.exported = self._load(files)
        load_s = time.perf_counter() - started
        self.on_step(f"comparing {self.form} with the eager module, on {len(self.images.inputs)} images")
        if self.form == BASE:
            module = load_torchscript(files.serialized_file, self.spec.device)
            check_exported(self.eager, module, self.images.traced_with, device=self.spec.device)
        measured = self._compare(want, names)
        return JobResult(
            serialized_file=str(files.serialized_file),
            companions=[str(path) for path in files.companions],
            engine_file=files.engine_file,
            report={**signature(self.recipe.preprocessing, int(want.shape[1])), "weights": self.weights.record},
            labels=names,
            files=[str(self.weights.file)] if self.weights.file else [],
            parity=measured.figures(),
            parity_record=measured.record(self.limits),
            problems=parity.problems(measured, self._judged()),
            tip=_TIPS[self.form.precision],
            int8_plan=plan.to_record() if plan else None,
            bytes=sum(Path(path).stat().st_size for path in (files.serialized_file, *files.companions)),
            load_s=load_s,
        )

    def _build(self) -> None:
        root = Path(self.request.root)
        source = RecipeSource.parse(self.spec.recipe)
        self.on_step(f"building the eager module of {source.label()}, weights: {self.request.weights}")
        classifier = build_classifier(self.recipe, source.label())
        self.weights = load_weights(
            self.request.weights,
            self.recipe,
            root,
            allow_pickle=self.request.allow_pickle,
            strip_prefix=self.request.strip_prefix,
            wanted=classifier.state_dict().keys(),
        )
        expected = self.request.locked_weights
        if expected is not None and expected != self.weights.record:
            raise ExportError(
                f"the lock was made for the weights {_shown(expected)}, these are {_shown(self.weights.record)}",
                tip=self.request.relock_tip,
            )
        apply_weights(classifier, self.weights, adapt=self.recipe.adapt_weights)
        self.graph = ImageGraph(classifier, self.recipe.preprocessing, self.recipe.expects).eval()
        device = torch.device(self.spec.device)
        eager = self.graph if device.type == "cpu" else copy.deepcopy(self.graph).to(device)
        self.eager: Forward = lambda images: eager(images.to(device)).cpu()

    def _wanted(self) -> torch.Tensor:
        """Return the eager module's outputs for the inputs, from another job of the same run if one has saved them."""
        kept = Path(self.request.reference) if self.request.reference else None
        if kept and kept.is_file():
            outputs: torch.Tensor = torch.load(kept, weights_only=True)
            return outputs
        with torch.inference_mode():
            outputs = parity.eager_outputs(self.eager, self.images.inputs)
        if kept:
            torch.save(outputs, kept)
        return outputs

    def _plan(self, attempt: int) -> Int8Plan | None:
        """Return the plan of the lock, or of a search, which aims higher in the next attempt."""
        if self.form.precision != "int8":
            return None
        with _named(self.form, "cannot be made", _TIPS["int8"]):
            return self._found_plan(attempt)

    def _found_plan(self, attempt: int) -> Int8Plan:
        from marsmith.export.int8.plan import Int8Plan, PlanCache

        if self.request.int8_plan:
            return Int8Plan.from_record(self.request.int8_plan)
        folder = self.request.int8_plans
        shared = PlanCache(Path(folder) if folder else None, self.form.engine)
        found = None if self.searched else shared.own()
        if found is not None:
            self.on_step(f"int8 as another {self.form.engine} form of the run has it")
            return found
        self.searched = True
        try:
            found = self._search(attempt, shared.of_others())
        except ExportError as error:
            shared.refuse(error)
            raise
        shared.keep(found)
        return found

    def _search(self, attempt: int, known: Int8Plan | None) -> Int8Plan:
        from marsmith.export.int8 import quantize as int8

        wanted = int8.aim(self.limits.top1_agreement or 0.0, attempt)
        agreement = int8.ExpectedAgreement.of(self.eager, self.images.tuning())
        calibration = self.images.calibration()
        return int8.search_plan(self.graph, self.form, calibration, agreement, wanted, self.on_step, known)

    def _serialize(self, plan: Int8Plan | None) -> Any:
        from marsmith.export.serialize import serialize

        torch.manual_seed(RANDOM_SEED)
        with warnings.catch_warnings(), _named(self.form, "cannot be made", _TIPS[self.form.precision]):
            warnings.simplefilter("ignore")
            return serialize(
                # The module would stay on a device that it is moved to.
                self.graph if self.spec.device == "cpu" else copy.deepcopy(self.graph),
                self.form,
                images=self.images.traced_with,
                calibration=self.images.calibration() if self.form.precision == "int8" else [],
                method=self.spec.method,
                int8=plan,
                device=self.spec.device,
                folder=Path(self.request.folder),
            )

    def _load(self, files: Any) -> Forward:
        folder = Path(self.request.handlers) if self.request.handlers else None
        with _named(self.form, "does not load", "is the engine installed, and does its version read this format?"):
            return load_in_engine(folder, files, self.form, self.spec.device, self.request.threads)

    # Comparing ------------------------------------------------------------------------------------------------------

    def _compare(self, want: torch.Tensor, names: dict[str, str]) -> parity.Parity:
        with torch.inference_mode(), _named(self.form, "fails on the inputs", "try export.method: script, or trace"):
            if not torch.isfinite(self.exported(self.images.noise[None])).all():
                raise ExportError(f"{self.form} gives values that are not finite, for noise")
            return parity.compare(want, self.exported, self.images.inputs, self.images.classes(names))

    def _judged(self) -> GateLimits:
        """Return the limits that apply. A few examples say nothing about shares, which the lock's verdict covers."""
        if not self.request.locked:
            return self.limits
        shares = ("top1_agreement", "top5_agreement", "max_accuracy_drop")
        return self.limits.model_copy(update=dict.fromkeys(shares))

    # Timing ---------------------------------------------------------------------------------------------------------

    def rate(self, what: str, batch_size: int, seconds: float) -> float:
        """Run ``eager`` or ``form`` for at least ``seconds`` (0: once, as warm-up); return images per second."""
        forward = self.eager if what == "eager" else self.exported
        batch = self.images.batch(batch_size)
        done, started = 0, time.perf_counter()
        with torch.inference_mode():
            while True:
                forward(batch)
                done += batch_size
                elapsed = time.perf_counter() - started
                if elapsed >= seconds:
                    return done / elapsed


def _classes(outputs: torch.Tensor) -> int:
    if outputs.ndim != 2:
        raise ExportError(
            f"for {len(outputs)} images the module gives outputs of the shape {tuple(outputs.shape)}, and an image "
            "classifier gives (N, classes)",
            tip="any other module is exported with a TensorRecipe: docs/reference/recipes.md",
        )
    return int(outputs.shape[1])


def open_job(request: JobRequest, on_step: Callable[[str], None]) -> Job | TensorJob | OnnxJob:
    """Open the recipe of a request and return the job for its kind.

    Raises:
        ExportError: the recipe does not exist or is invalid.
    """
    source, root = RecipeSource.parse(str(request.export["recipe"])), Path(request.root)
    if source.scheme == "onnx":
        return OnnxJob(request, root / source.name, on_step)
    recipe = open_recipe(source, root)
    return Job(request, recipe, on_step) if isinstance(recipe, Recipe) else TensorJob(request, recipe, on_step)


@contextmanager
def _named(form: Form, what: str, tip: str) -> Iterator[None]:
    """Convert any exception of a converter or an engine into an ExportError that names the form."""
    try:
        yield
    except MarsmithError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and access_error(error):
            raise
        raise ExportError(f"{form} {what}: {typed_line(error)}", tip=tip) from error


def _shown(record: dict[str, Any]) -> str:
    return ", ".join(f"{key} {str(value)[:12]}" for key, value in record.items())
