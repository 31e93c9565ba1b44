"""New module for an archive that keeps its own handler: same input and output tensors, loaded by ``torch.jit.load``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith import files
from marsmith.archive import Member
from marsmith.build.optimize.task import NewModule, Task
from marsmith.config.form import AUTO
from marsmith.errors import ExportError, UsageError
from marsmith.export import locks
from marsmith.export.images import digests
from marsmith.export.lock import Candidate, ExportLock
from marsmith.export.machine import Machine, versions
from marsmith.export.record import SEEDS
from marsmith.runtime import environment
from marsmith.runtime.imports import local_imports
from marsmith.runtime.runner import Request

if TYPE_CHECKING:
    from marsmith.build.optimize.module import ModuleFound, ModuleInputs

# Number of crops that are sent through the handler for each use; validation uses the photos in addition.
_CALIBRATION, _TUNING, _VALIDATION = 48, 32, 48
# Side length of a crop in pixels: larger than handlers' crops, so that they resize it like a photo.
_CROP = 320


def custom_module(task: Task) -> NewModule:
    """Make a new module for an archive with its own handler.

    Raises:
        UsageError: the engine is not possible with such a handler.
        HandlerError: the handler does not load.
        ExportError: the handler does not pass one image per request to the module, or no form passes the gate.
    """
    from marsmith.build.optimize.module import export_module

    old = task.old
    if task.options.engine not in (AUTO, "torch"):
        raise UsageError(
            f"{old.manifest.handler} loads the serialized file with torch: it cannot run {task.options.engine}",
            tip="leave out --engine; other engines come with our handler, from a spec",
        )
    found = export_module(
        old.serialized_file,
        _inputs(task),
        task.scratch / "module",
        precision=task.options.precision,
        batch_size=task.config.serving.batch_size,
        threads=max(1, Machine.here().cores // task.config.serving.min_workers),
        effort=task.effort,
        progress=task.progress,
    )
    if found.chosen is None or found.file is None:
        raise _nothing_faster(found.candidates)
    lock = _lock(task, found, found.chosen)
    handler = old.folder / old.manifest.handler.partition(":")[0]
    return NewModule(
        form=found.chosen.what,
        members=(Member(str(old.manifest.serialized_file), found.file),),
        handler=old.manifest.handler,
        serialized_file=str(old.manifest.serialized_file),
        settings={},
        report=_report(task, found, lock),
        lock=lock,
        environment=environment.record([handler, *local_imports(handler)], allow_missing=True),
    )


def _inputs(task: Task) -> ModuleInputs:
    """Send photos and their crops through the old archive's handler."""
    from marsmith.build.optimize.module import ModuleInputs
    from marsmith.build.optimize.module_inputs import module_inputs
    from marsmith.export.crops import CALIBRATION_SEED, TUNING_SEED, VALIDATION_SEED

    sets, quantised = task.photos.sets, task.options.precision in (AUTO, "int8")
    # Without int8 two images are enough for tracing.
    calibration = _crops(sets.calibration, _CALIBRATION if quantised else 2, CALIBRATION_SEED)
    tuning = _crops(sets.calibration, _TUNING if quantised else 0, TUNING_SEED)
    photos = [path.read_bytes() for path in dict.fromkeys([*sets.examples, *sets.validation])]
    validation = [*photos, *_crops(sets.validation, _VALIDATION, VALIDATION_SEED)]
    bodies = [*calibration, *tuning, *validation]
    task.progress.step(f"recording the module's inputs for {len(bodies)} images")
    requests = [Request(body) for body in bodies]
    given = module_inputs(task.old.folder, task.old.serialized_file.name, requests)
    second, third = len(calibration), len(calibration) + len(tuning)
    return ModuleInputs(given[:second], given[second:third], given[third:])


def _crops(photos: Sequence[Path], count: int, seed: int) -> list[bytes]:
    """Return crops as PNG files."""
    from PIL import Image

    from marsmith.export import ImagePreprocessing
    from marsmith.export.crops import random_crops

    bodies = [path.read_bytes() for path in photos]
    size = ImagePreprocessing(resize=_CROP, crop=(_CROP, _CROP))
    encoded = []
    for crop in random_crops(bodies, size, count=count, seed=seed):
        stream = io.BytesIO()
        Image.fromarray(crop.permute(1, 2, 0).numpy()).save(stream, "PNG", compress_level=1)
        encoded.append(stream.getvalue())
    return encoded


def _nothing_faster(candidates: Sequence[Candidate]) -> ExportError:
    lines = "\n  ".join(f"{one.form} is {one.verdict}: {one.reason}" for one in candidates)
    return ExportError(
        f"nothing faster passes the gate, so the old archive is the best:\n  {lines}",
        tip="other engines need our handler: write a spec with the recipe torchscript:FILE (docs/reference/recipes.md)",
    )


def _lock(task: Task, found: ModuleFound, chosen: Candidate) -> ExportLock:
    """Return the measurements as a lock, with digests of the old module and the photos."""
    from marsmith.build.optimize.module import limits_of

    module = files.sha256(task.old.serialized_file)
    limits = limits_of(chosen.what.precision).model_dump(exclude_none=True)
    sets = task.photos.sets
    images = {"calibration": digests(sets.calibration), "validation": digests(sets.validation)}
    return ExportLock.model_validate(
        {
            "format_version": 1,
            "model": task.name,
            "chosen": chosen.form,
            "why": f"the fastest with the archive's own handler, {chosen.speedup:.3g} times the archive's own module",
            "fits": {
                "export": locks.digest_of({"precision": task.options.precision, "engine": task.options.engine}),
                "recipe": module,
                "images": locks.digest_of(images),
                "weights": _weights(task),
                "packages": versions(chosen.what),
            },
            "limits": limits,
            "candidates": [one.model_dump() for one in found.candidates],
            "eager_images_per_second": found.before,
            "batch_sizes": found.sizes,
            "machine": Machine.here().record(),
            "seeds": SEEDS,
            "images": {"held_out": sets.held_out, **images},
            "int8": found.plan.to_record() if found.plan else None,
        }
    )


def _weights(task: Task) -> dict[str, str]:
    path = task.old.serialized_file
    return {"source": "recipe", "file": path.name, "sha256": files.sha256(path)}


def _report(task: Task, found: ModuleFound, lock: ExportLock) -> dict[str, Any]:
    form = lock.form
    chosen = lock.candidate(lock.chosen)
    figures = chosen.figures if chosen else {}
    return {
        "formatVersion": 1,
        "model": task.name,
        "form": str(form),
        "format": form.format,
        "precision": form.precision,
        "engine": form.engine,
        "device": "cpu",
        "serializedFile": task.old.manifest.serialized_file,
        "companions": [],
        "recipe": f"torchscript:{task.old.manifest.serialized_file}",
        "outputs": [{"name": "output", "dtype": "float32", "shape": [None, found.classes]}],
        "weights": _weights(task),
        "parity": {"against": "the old archive's module", **figures, "limits": lock.limits},
        "speed": {
            "imagesPerSecond": {
                "old module": lock.eager_images_per_second,
                lock.chosen: chosen.images_per_second if chosen else {},
            },
            "speedup": chosen.speedup if chosen else None,
            "machine": lock.machine,
        },
        "chosen": lock.why,
        "candidates": [one.model_dump(include={"form", "verdict", "speedup", "reason"}) for one in lock.candidates],
    } | ({"int8": lock.int8} if lock.int8 else {})
