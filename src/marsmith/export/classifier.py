"""An image classifier as a recipe gives it: its module built, its labels, and how its export is described.

Imports torch.

An image classifier of an archive as a module of tensors: checked, and wrapped for export. Imports torch.
"""

from __future__ import annotations

from typing import Any

import torch

from marsmith.error_text import typed_line
from marsmith.errors import ExportError, MarsmithError
from marsmith.export.class_names import class_names, distinct
from marsmith.export.recipes.recipe import ImagePreprocessing, Recipe
from marsmith.export.recipes.weights import RANDOM_SEED


def build_classifier(recipe: Recipe, label: str) -> torch.nn.Module:
    """Call a recipe's ``build`` with a fixed seed.

    Raises:
        ExportError: it raises, or returns something else.
    """
    torch.manual_seed(RANDOM_SEED)
    try:
        module = recipe.build()
    except MarsmithError:
        raise
    except Exception as error:
        raise ExportError(f"build() of the recipe {label} raises {type(error).__name__}: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"build() of the recipe {label} returns {type(module).__name__}, not a torch.nn.Module")
    return module.eval()


def labels_of(labels: object, classes: int) -> dict[str, str]:
    """Return class index, as text, to name: the stock format of index_to_name.json, with every name once.

    Args:
        labels: what a recipe has under ``labels``, or a function that returns it.
        classes: how many outputs the module has.

    Raises:
        ExportError: the function raises, or the labels do not name every output.
    """
    try:
        given = labels() if callable(labels) else labels
    except MarsmithError:
        raise
    except Exception as error:  # a recipe is anybody's code
        raise ExportError(f"labels() of the recipe raises {type(error).__name__}: {error}") from error
    return {str(index): name for index, name in enumerate(distinct(class_names(given, classes)))}


def signature(preprocessing: ImagePreprocessing, classes: int) -> dict[str, Any]:
    """Return inputs, outputs and preprocessing as export.json has them; None where an axis may vary."""
    height, width = preprocessing.crop
    pixels = {"name": "images", "dtype": "uint8", "shape": [None, 3, height, width], "layout": "NCHW", "color": "RGB"}
    return {
        "inputs": [pixels],
        "outputs": [{"name": "probabilities", "dtype": "float32", "shape": [None, classes]}],
        "preprocessing": {
            "byTheHandler": {
                "resize": preprocessing.resize,
                "crop": list(preprocessing.crop),
                "interpolation": preprocessing.interpolation,
            },
            "inTheGraph": {"mean": list(preprocessing.mean), "std": list(preprocessing.std)},
        },
    }


class ImageModule(torch.nn.Module):
    """The module, in channels-last: what convolutions on x86 are fastest in."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 (N, 3, H, W) to what the module gives."""
        outputs: torch.Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return outputs


class Probabilities(torch.nn.Module):
    """The module with a softmax: limits and int8's search are about probabilities."""

    def __init__(self, module: torch.nn.Module, *, needed: bool) -> None:
        super().__init__()
        self.module = module
        self.needed = needed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map what the module takes to probabilities (N, classes)."""
        outputs: torch.Tensor = self.module(images)
        return outputs.softmax(1) if self.needed else outputs


def check_classifier(module: torch.nn.Module, image: torch.Tensor, name: str) -> int:
    """Return how many classes an image classifier knows.

    Args:
        module: float32 (N, 3, H, W) to (N, classes).
        image: float32 (3, H, W).
        name: of its file.

    Raises:
        ExportError: it is none; with what it gives.
    """
    batch = torch.stack([image, image.flip(-1), image.flip(-2)])
    taken = f"float32 {tuple(batch.shape)}"
    try:
        with torch.inference_mode():
            outputs = module(batch)
    except RuntimeError as error:
        raise ExportError(f"{name} is no image classifier: it does not take {taken}: {typed_line(error)}") from error
    if not isinstance(outputs, torch.Tensor):
        raise ExportError(f"{name} is no image classifier: for {taken} it gives a {type(outputs).__name__}, no tensor")
    if outputs.ndim != 2 or len(outputs) != len(batch) or outputs.dtype != torch.float32:
        seen = f"{str(outputs.dtype).removeprefix('torch.')} {tuple(outputs.shape)}"
        raise ExportError(f"{name} is no image classifier: for {taken} it gives {seen}, not float32 (3, classes)")
    return int(outputs.shape[1])
