"""Quantise a graph to int8 by a plan, and search for the plan: the interface of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from marsmith.child_processes import temporary_folder
from marsmith.config.form import Form
from marsmith.errors import ExportError
from marsmith.export.int8.plan import Int8Plan
from marsmith.export.int8.search import ExpectedAgreement, Forward, Judge, best_settings, restore_float_layers

# One in this number of calibration images evaluates settings and layers instead of calibrating.
_JUDGING = 4
_JUDGES = 24
# A search aims this far above the gate, as a share of what is left to 1: the gate sees other images.
_MARGIN = 0.25
# By so much higher aims each further one.
_HIGHER = 0.5
ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.pt"

__all__ = ["ExpectedAgreement", "aim", "quantize", "search_plan"]


def quantize(
    graph: torch.nn.Module,
    form: Form,
    plan: Int8Plan,
    calibration: Sequence[torch.Tensor],
    images: Sequence[torch.Tensor],
    folder: Path,
) -> tuple[Path, ...]:
    """Write the int8 file for the form's engine; the same inputs and plan give the same bytes.

    Args:
        graph: the eager float32 module: uint8 (N, 3, H, W) to float32 (N, classes); it is not changed.
        form: form with precision int8. Engine ``torch`` gives TorchScript, the others an ONNX model.
        plan: plan of the quantisation.
        calibration: images uint8 (3, H, W), read in this order.
        images: uint8 (3, H, W) to trace with.
        folder: folder of the file.

    Raises:
        ExportError: the module cannot be expressed, has nothing to quantise, or does not match the plan.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    if form.engine == "torch":
        from marsmith.export.int8.torch import write_int8_torchscript

        write_int8_torchscript(graph, plan, calibration, images, folder / TORCHSCRIPT_FILE)
        return (folder / TORCHSCRIPT_FILE,)
    from marsmith.export.formats.onnx import refuse_telemetry

    refuse_telemetry()
    from marsmith.export.int8 import onnx as int8_onnx

    model = int8_onnx.float_model(graph, images, folder)
    calibrated = int8_onnx.calibrate(model, plan, calibration)
    quantized = int8_onnx.quantize_calibrated(calibrated, plan, form.engine)
    int8_onnx.write_int8_onnx(quantized, folder / ONNX_FILE)
    return (folder / ONNX_FILE,)


def aim(limit: float, attempt: int) -> float:
    """Return the agreement that a search is to reach, 0 to 1.

    Args:
        limit: the gate's.
        attempt: how many searches the gate has refused.
    """
    return limit + (1 - limit) * (_MARGIN + attempt * _HIGHER)


def search_plan(
    graph: torch.nn.Module,
    form: Form,
    calibration: Sequence[torch.Tensor],
    validate: Callable[[Forward], float],
    wanted: float,
    on_step: Callable[[str], None],
    known: Int8Plan | None = None,
) -> Int8Plan:
    """Find a plan for which ``validate`` of the quantised ``graph`` is at least ``wanted``.

    Settings are compared first. If all layers can be int8, this is enough. Otherwise each run of a few layers is left
    in float32 separately, to measure how much noise that removes. The layers with the most noise for their cost stay in
    float32, as many as necessary. The time is bounded: one short trial per layer, and the number of validations of a
    bisection.

    Args:
        graph: the eager float32 module.
        form: form with precision int8; it is measured in its engine.
        calibration: images uint8 (3, H, W); a part of them evaluates instead of calibrating.
        validate: agreement, 0 to 1, of a function of uint8 (N, 3, H, W) with the eager module, on other images.
        wanted: agreement to reach, 0 to 1.
        on_step: called with a description of each step.
        known: a plan of another engine of the run; used without a search if it is good enough here.

    Raises:
        ExportError: no plan reaches ``wanted``, or the module cannot be quantised.
    """
    if not calibration:
        raise ExportError("int8 needs calibration images", tip="name some in the spec: export.calibration")
    with temporary_folder("marsmith-int8-") as folder:
        from marsmith.export.int8.trials import trials_of

        fitting, judging = _split(calibration)
        judge = Judge.of(graph, judging)
        trials = trials_of(graph, form, fitting, judge, folder)
        if known is not None:
            reached = validate(trials.forward(known))
            on_step(f"int8 by the plan of another engine: agreement {reached:.4f}, wanted {wanted:.4f}")
            if reached >= wanted:
                return known
        plan = best_settings(trials.settings(), trials.noise_db, on_step)
        found = restore_float_layers(
            plan, lambda: trials.ranked(plan), lambda tried: validate(trials.forward(tried)), wanted, on_step
        )
    return replace(found, images=len(fitting))


def _split(calibration: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the first images, for the ranges, and the last ones, for the evaluation."""
    judges = min(len(calibration) // _JUDGING, _JUDGES)
    if judges == 0:
        return list(calibration), list(calibration)
    return list(calibration[:-judges]), list(calibration[-judges:])
