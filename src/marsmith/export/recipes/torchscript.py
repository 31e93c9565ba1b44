"""Recipes for existing TorchScript files: the file is the reference, and is exported again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.recipes.recipe import Expects, ImagePreprocessing, Labels, Recipe
from marsmith.export.tracing.devices import absent_device_problem
from marsmith.stand_ins import stand_in

_DEFAULT_PREPROCESSING = ImagePreprocessing()
_DEFAULT_EXPECTS = Expects()


def torchscript_recipe(
    path: Path,
    *,
    preprocessing: ImagePreprocessing = _DEFAULT_PREPROCESSING,
    expects: Expects = _DEFAULT_EXPECTS,
    labels: Labels | Callable[[], Labels] | None = None,
) -> Recipe:
    """Return the recipe of an image classifier in a TorchScript file.

    Args:
        path: file of ``torch.jit.save``.
        preprocessing: preprocessing of photos.
        expects: whether the file contains normalisation and softmax.
        labels: labels as in ``Recipe``; None for numbers.
    """
    return Recipe(
        build=lambda: load_module(path),
        preprocessing=preprocessing,
        labels=labels if labels is not None else (lambda: _numbers(path, preprocessing, expects)),
        expects=expects,
        torchscript=path,
    )


def load_module(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file for inference on the CPU; no Python code of the file runs.

    Raises:
        ExportError: the file is not TorchScript, is truncated, or uses a device that this machine lacks.
    """
    if not path.is_file():
        raise ExportError(f"no TorchScript file at {path}", tip="name it from the project's root")
    instead = stand_in(path)
    if instead:
        raise ExportError(f"{path} {instead.what}, not a TorchScript file", tip=instead.tip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")
        except (RuntimeError, ValueError, OSError) as error:
            tip = "it should be made by torch.jit.save"
            raise ExportError(f"{path} is not a complete TorchScript file: {useful_line(error)}", tip=tip) from error
    if problem := absent_device_problem(module, path):
        raise problem
    return module.eval()


def _numbers(path: Path, preprocessing: ImagePreprocessing, expects: Expects) -> list[str]:
    dtype = torch.uint8 if expects.pixels == "uint8" else torch.float32
    with torch.inference_mode():
        outputs = load_module(path)(torch.zeros(2, 3, *preprocessing.crop, dtype=dtype))
    return [str(number) for number in range(outputs.shape[1])]
