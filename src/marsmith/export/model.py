"""Export a model: weights to a serialized file, which takes uint8 images and returns probabilities, and a report.

The form (format, precision, engine) is in the spec, or ``auto``. Then it is in the lock beside the spec, as the result
of a measurement. Needs torch. torch is imported only if something is exported, in separate processes, and not if an
earlier export is still current.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from marsmith.config.form import BASE, Form
from marsmith.config.model_spec import ModelSpec
from marsmith.errors import ExportError, MarsmithError, MissingDependencyError, UsageError
from marsmith.export import locks
from marsmith.export import measure as export_choice
from marsmith.export import stamp as build_stamp
from marsmith.export.folder import STAMP_FILE, Export, Product, products, publish, reuse, work_folder
from marsmith.export.inputs import ExportInputs, gather
from marsmith.export.lock import ExportLock
from marsmith.export.machine import Machine, obstacle, stand_in
from marsmith.export.measure import SILENT, USUAL_EFFORT, Effort, Measured, Progress, measure
from marsmith.export.messages import JobResult
from marsmith.export.process import JobProcess
from marsmith.export.record import new_lock, report_of
from marsmith.packages import installed_version
from marsmith.project import Project


def export_model(
    project: Project,
    spec: ModelSpec,
    *,
    weights: str | None = None,
    overrides: Mapping[str, str] | None = None,
    relock: bool = False,
    frozen: bool = False,
    allow_pickle: bool = False,
    strip_prefix: str | None = None,
    effort: Effort = USUAL_EFFORT,
    progress: Progress = SILENT,
    on_step: Callable[[str], None] | None = None,
) -> Export:
    """Export the model of ``spec``, unless the last export is still current.

    Args:
        project: project of the recipe and of the export.
        spec: spec of the model.
        weights: replaces the spec's ``export.weights``.
        overrides: keys of the export block for this run; see ``export_inputs.gather``.
        relock: whether to measure, and to write the lock again.
        frozen: whether to refuse to measure a model without a lock.
        allow_pickle: whether to load weights from a file that can run code.
        strip_prefix: replaces the spec's ``export.strip_prefix``.
        effort: duration of the timing, if there is any.
        progress: callbacks for the progress.
        on_step: called with a description of each step, instead of ``progress``.

    Raises:
        ExportError: the recipe, the weights, the gate or the lock prevent the export; an earlier export is not changed.
        UsageError: the form is not supported, or a lock of it would not fit the spec.
    """
    if on_step is not None:
        progress = Progress(step=on_step)
    inputs = gather(
        project, spec, weights=weights, overrides=overrides, allow_pickle=allow_pickle, strip_prefix=strip_prefix
    )
    if relock and not set(inputs.export.forms()) <= set(spec.export.forms()):
        raise UsageError(
            "a lock holds a choice that the spec leaves open, and the spec allows no such form",
            tip="change export.format, export.precision or export.engine in the spec, then relock",
        )
    return _Run(inputs, inputs.export != spec.export, relock, frozen, effort, progress).export()


@dataclass(frozen=True)
class _Run:
    """One call of ``export_model``."""

    inputs: ExportInputs
    overridden: bool
    relock: bool
    frozen: bool
    effort: Effort
    progress: Progress

    def export(self) -> Export:
        project, model = self.inputs.project, self.inputs.spec.name
        folder = project.exports / model
        previous = None if self.overridden and not self.relock else self._previous()
        lock = None if self.relock else previous
        digests = self.inputs.digests()
        if lock:
            locks.require_fit(lock, digests)
        stamp = self.inputs.stamp(locks.digest_of(lock.model_dump()) if lock else None)
        if not self.relock and build_stamp.is_current(folder / STAMP_FILE, stamp, project.root):
            return reuse(folder, lock)
        if self._must_measure(lock) and self.frozen:
            raise ExportError(
                f"{model} has no lock, and a frozen run does not measure",
                tip=f"measure and commit the lock: {locks.relock_command(model)}",
            )
        if installed_version("torch") is None:
            raise MissingDependencyError("torch", extra="export")
        with work_folder(folder) as work:
            product = self._locked(lock, work) if lock else self._unlocked(digests, work)
            export = publish(folder, product, model)
        made = product.lock if self._writes_lock() else lock
        if made is not None and made is not lock:
            locks.write_lock(project, made)
            self.progress.step(f"wrote {locks.lock_path(project, model).relative_to(project.root)}")
            stamp = {**stamp, "lock": locks.digest_of(made.model_dump())}
        files = [*self.inputs.files(), *map(Path, product.result.files), *products(export)]
        build_stamp.write_stamp(folder / STAMP_FILE, stamp, files, project.root)
        return replace(export, lock=made, previous=previous if self.relock else None)

    def _previous(self) -> ExportLock | None:
        """Return the present lock; a damaged one does not prevent its replacement."""
        try:
            return locks.read_lock(self.inputs.project, self.inputs.spec.name)
        except MarsmithError:
            if self.relock:
                return None
            raise

    def _must_measure(self, lock: ExportLock | None) -> bool:
        return lock is None and (self.relock or self.inputs.export.is_auto)

    def _writes_lock(self) -> bool:
        return self.relock or (self.inputs.export.is_auto and not self.overridden)

    def _locked(self, lock: ExportLock, work: Path) -> Product:
        """Repeat the choice of a lock, and confirm it on the examples."""
        machine, relock = Machine.here(), locks.relock_command(lock.model)
        instead = stand_in(lock.form, self.inputs.export.device, machine)
        self._require_possible(instead or lock.form, machine, f"choose for this machine: {relock}")
        if instead:
            self.progress.step(
                f"{lock.form} of the lock computes in {instead.precision} here: {machine.cpu} has no"
                f" {lock.form.precision}. To measure what is fastest on this machine: {relock}"
            )
        request = replace(
            self.inputs.request(lock.form, work, machine.cores),
            locked=True,
            locked_weights=lock.fits.weights,
            int8_plan=lock.int8,
            relock_tip=f"measure again: {relock}",
        )
        with JobProcess(request) as job:
            result = job.export(self.progress.step)
        _require(result, lock.form)
        return Product(result, lock.form, report_of(self.inputs, lock.form, result, lock), None, lock)

    def _unlocked(self, digests: Mapping[str, str], work: Path) -> Product:
        """Make the only requested form, or measure and choose."""
        wanted = self.inputs.export.forms()
        machine = Machine.here()
        if len(wanted) == 1:
            self._require_possible(wanted[0], machine, "take another precision or engine, or auto")
        if self.inputs.recipe.scheme == "onnx" and (self.relock or len(wanted) > 1):
            raise ExportError(
                f"{self.inputs.recipe.label()} is served as it is: there is no form to choose by measuring",
                tip="export.format: onnx, and export.engine: onnxruntime or openvino",
            )
        if (wanted == (BASE,) and not self.relock) or self.inputs.recipe.scheme == "onnx":
            return self._alone(wanted[0], machine, work)
        return self._chosen(wanted, machine, digests, work)

    def _alone(self, form: Form, machine: Machine, work: Path) -> Product:
        """Make a form that is not timed: float32 TorchScript, or an ONNX file as it is."""
        request = self.inputs.request(form, work, machine.cores)
        with JobProcess(replace(request, thorough=self.inputs.has_images_for_base)) as job:
            result = job.export(self.progress.step)
        _require(result, form)
        return Product(result, form, report_of(self.inputs, form, result, None), None, None)

    def _chosen(self, wanted: tuple[Form, ...], machine: Machine, digests: Mapping[str, str], work: Path) -> Product:
        """Measure the forms and choose the fastest that passes."""
        found = measure(
            replace(
                self.inputs.request(BASE, work, machine.cores),
                thorough=bool(self.inputs.images.validation),
                reference=str(work / "eager.pt"),
                int8_plans=str(work),
            ),
            wanted,
            work,
            batch_size=self.inputs.spec.serving.batch_size,
            machine=machine,
            device=self.inputs.export.device,
            must_be_faster=self.inputs.export.gate.must_be_faster,
            effort=self.effort,
            progress=self.progress,
        )
        chosen = export_choice.choose([one for one in found.candidates if one.what in wanted], found.sizes)
        if chosen is None:
            raise _none_passed(found, wanted)
        result = found.results[chosen.form]
        lock = new_lock(self.inputs, found, chosen, result, machine, digests)
        # Without a lock in the project, the archive has no figures, because they would differ in every build.
        report = report_of(self.inputs, chosen.what, result, lock if self._writes_lock() else None)
        return Product(result, chosen.what, report, lock.model_dump(exclude_none=True), lock)

    def _require_possible(self, form: Form, machine: Machine, tip: str) -> None:
        problem = obstacle(form, self.inputs.export.device, machine)
        if problem:
            raise ExportError(f"{form} is not possible here: {problem}", tip=tip)


def _require(result: JobResult, form: Form) -> None:
    if result.problems:
        raise ExportError(f"{form} does not answer like the eager module: {'; '.join(result.problems)}", tip=result.tip)


def _none_passed(found: Measured, wanted: tuple[Form, ...]) -> ExportError:
    tried = [one for one in found.candidates if one.what in wanted]
    if len(tried) == 1:
        return ExportError(f"{tried[0].form} is {tried[0].verdict}: {tried[0].reason}")
    lines = "\n  ".join(f"{one.form} is {one.verdict}: {one.reason}" for one in tried)
    return ExportError(f"no form passes the gate:\n  {lines}", tip="allow float32: --precision auto --engine auto")
