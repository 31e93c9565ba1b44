"""Image classifiers for export: build a recipe's module, check and wrap it, and describe the export. Imports torch."""

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
        ExportError: it raises, or does not return a module.
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
    """Return names by class index as text: the stock format of index_to_name.json, with unique names.

    Args:
        labels: the recipe's ``labels``, or a function that returns them.
        classes: number of outputs of the module.

    Raises:
        ExportError: the function raises, or the labels do not name every output.
    """
    try:
        given = labels() if callable(labels) else labels
    except MarsmithError:
        raise
    except Exception as error:  # A recipe may raise any exception.
        raise ExportError(f"labels() of the recipe raises {type(error).__name__}: {error}") from error
    return {str(index): name for index, name in enumerate(distinct(class_names(given, classes)))}


def signature(preprocessing: ImagePreprocessing, classes: int) -> dict[str, Any]:
    """Return inputs, outputs and preprocessing for export.json; None for an axis that may vary."""
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
    """The module in channels-last, the fastest memory format of convolutions on x86."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 (N, 3, H, W) to the outputs of the module."""
        outputs: torch.Tensor = self.module(images.contiguous(memory_format=torch.channels_last))
        return outputs


class Probabilities(torch.nn.Module):
    """The module with a softmax, because limits and the search for int8 use probabilities."""

    def __init__(self, module: torch.nn.Module, *, needed: bool) -> None:
        super().__init__()
        self.module = module
        self.needed = needed

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map inputs of the module to probabilities (N, classes)."""
        outputs: torch.Tensor = self.module(images)
        return outputs.softmax(1) if self.needed else outputs


def check_classifier(module: torch.nn.Module, image: torch.Tensor, name: str) -> int:
    """Return the number of classes of an image classifier.

    Args:
        module: float32 (N, 3, H, W) to (N, classes).
        image: float32 (3, H, W).
        name: name of its file.

    Raises:
        ExportError: the module is not an image classifier; the message says what it returns.
    """
    batch = torch.stack([image, image.flip(-1), image.flip(-2)])
    taken = f"float32 {tuple(batch.shape)}"
    try:
        with torch.inference_mode():
            outputs = module(batch)
    except RuntimeError as error:
        raise ExportError(
            f"{name} is not an image classifier: it does not take {taken}: {typed_line(error)}"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise ExportError(
            f"{name} is not an image classifier: for {taken} it gives a {type(outputs).__name__}, not a tensor"
        )
    if outputs.ndim != 2 or len(outputs) != len(batch) or outputs.dtype != torch.float32:
        seen = f"{str(outputs.dtype).removeprefix('torch.')} {tuple(outputs.shape)}"
        raise ExportError(f"{name} is not an image classifier: for {taken} it gives {seen}, not float32 (3, classes)")
    return int(outputs.shape[1])
