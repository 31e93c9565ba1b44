"""Records of an export: export.json for the archive, and the lock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marsmith.config.form import BASE, Form
from marsmith.export import locks
from marsmith.export import measure as export_choice
from marsmith.export.images import digests
from marsmith.export.inputs import ExportInputs
from marsmith.export.lock import Candidate, ExportLock
from marsmith.export.machine import Machine
from marsmith.export.measure import Measured
from marsmith.export.messages import JobResult

# The same values as in image_crops and weights, which import torch.
SEEDS = {"weights": 0, "calibration": 1, "tuning": 2, "validation": 3}


def report_of(inputs: ExportInputs, form: Form, result: JobResult, lock: ExportLock | None) -> dict[str, Any]:
    """Return the content of export.json: only values that another build of the same inputs would repeat.

    Args:
        inputs: inputs of the export.
        form: the exported form.
        result: result of the export.
        lock: lock whose figures are copied; None: errors are given as bounds, without speeds.
    """
    report = {
        "form": str(form),
        "format": form.format,
        "method": inputs.export.method,
        "precision": form.precision,
        "engine": form.engine,
        "device": inputs.export.device,
        "serializedFile": Path(result.serialized_file).name,
        "companions": [Path(path).name for path in result.companions],
        "engineFile": result.engine_file,
        "recipe": inputs.recipe.label(),
        **result.report,
    }
    return report | (_from_lock(lock) if lock else {"parity": result.parity_record})


def _from_lock(lock: ExportLock) -> dict[str, Any]:
    chosen = lock.candidate(lock.chosen) or Candidate(form=lock.chosen, verdict="passed")
    base = lock.candidate(str(BASE))
    figures = {_camel(key): value for key, value in chosen.figures.items()}
    return {
        "parity": {"against": "the eager float32 module", **figures, "limits": lock.limits},
        "speed": {
            "imagesPerSecond": {
                "eager": lock.eager_images_per_second,
                str(BASE): base.images_per_second if base else {},
                lock.chosen: chosen.images_per_second,
            },
            "speedup": chosen.speedup,
            "machine": lock.machine,
        },
        "chosen": lock.why,
        "candidates": [_short(one) for one in lock.candidates],
    } | ({"int8": lock.int8} if lock.int8 else {})


def _short(candidate: Candidate) -> dict[str, Any]:
    kept = {"form": candidate.form, "verdict": candidate.verdict, "speedup": candidate.speedup}
    return {key: value for key, value in kept.items() if value is not None} | (
        {"reason": candidate.reason} if candidate.reason else {}
    )


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(map(str.title, rest))


def new_lock(
    inputs: ExportInputs,
    found: Measured,
    chosen: Candidate,
    result: JobResult,
    machine: Machine,
    now: Mapping[str, str],
) -> ExportLock:
    """Return the lock for measurements.

    Args:
        inputs: inputs of the export.
        found: the measurements.
        chosen: the chosen form.
        result: result of the chosen form.
        machine: this machine.
        now: digests of the inputs of the lock.
    """
    limits = inputs.export.gate.limits(chosen.what.precision).model_dump(exclude_none=True)
    return ExportLock.model_validate(
        {
            "format_version": 1,
            "model": inputs.spec.name,
            "chosen": chosen.form,
            "why": _why(chosen, found),
            "fits": locks.fits(now, result.report["weights"], chosen.what).model_dump(),
            "limits": {_camel(key): float(value) for key, value in limits.items()},
            "candidates": [one.model_dump() for one in found.candidates],
            "eager_images_per_second": found.eager,
            "batch_sizes": found.sizes,
            "machine": machine.record(),
            "seeds": SEEDS,
            "images": _images(inputs),
            "int8": result.int8_plan,
        }
    )


def _images(inputs: ExportInputs) -> dict[str, Any]:
    sets = inputs.images
    return {
        "held_out": sets.held_out,
        "calibration": digests(sets.calibration),
        "validation": digests(sets.validation),
    }


def _why(chosen: Candidate, found: Measured) -> str:
    passed = [one for one in found.candidates if one.verdict == "passed"]
    fastest = max(passed, key=lambda one: export_choice.score(one.images_per_second, found.sizes))
    times = f"{chosen.speedup:.3g} times the eager module"
    if fastest.form == chosen.form:
        return f"the fastest of {len(passed)} that pass, {times}"
    return f"within {export_choice.CLOSE:.0%} of {fastest.form}, the fastest of {len(passed)} that pass; {times}"
