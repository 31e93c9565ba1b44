"""Export recipe: how to build a model's eager module, its inputs, and the names of its outputs.

A recipe is a Python file under ``export/`` that defines ``RECIPE``: a ``Recipe`` for an image classifier, or a
``TensorRecipe`` for other models. This module imports no torch, so that recipes can be described without it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from marsmith.errors import ExportError
from marsmith.export.recipes.imports import fix_missing_in_recipe
from marsmith.export.recipes.modules import find_in

if TYPE_CHECKING:
    import torch

# Mean and standard deviation per channel (R, G, B) of ImageNet's training images, for values 0 to 1, from torchvision.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]
AdaptWeights = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Labels = Sequence[str] | Mapping[str, Any] | Mapping[int, Any]


@dataclass(frozen=True)
class ImagePreprocessing:
    """Preprocessing of a photo for the eager module.

    The handler resizes and crops uint8 pixels. Normalisation is part of the exported graph, so that one byte per value
    is copied and the two are always consistent.

    Attributes:
        resize: length of the shorter side after resizing, in pixels.
        crop: height and width of the centre crop, in pixels.
        mean, std: values per channel (R, G, B), in units of pixel values 0 to 1.
        interpolation: interpolation of the handler's resizing, always with antialiasing.
    """

    resize: int = 256
    crop: tuple[int, int] = (224, 224)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class Expects:
    """Steps from pixels to probabilities that the module does itself; the graph around it adds the others.

    Attributes:
        pixels: input of the module: ``normalised`` floats, ``unit`` floats 0 to 1 (it normalises itself), or ``uint8``
            values 0 to 255.
        output: output of the module: ``logits`` or ``probabilities``.
    """

    pixels: Literal["normalised", "unit", "uint8"] = "normalised"
    output: Literal["logits", "probabilities"] = "logits"


@dataclass(frozen=True)
class Recipe:
    """How to make an image classifier.

    Attributes:
        build: returns the eager module, float32, with any weights. It takes (N, 3, H, W) and returns (N, classes), as
            in ``expects``; by default normalised floats and logits.
        preprocessing: preprocessing of photos.
        labels: class names, or a function that returns them, in any form of ``class_names``: in the order of the
            outputs, index to name, or name to index.
        bundled_weights: returns the path of a state dict in an installed package; None if there is none.
        hub_weights: downloads and returns a state dict; None if there is no hub for it.
        adapt_weights: renames the keys of an older state dict for the present module; None if there is none.
        expects: inputs and outputs of the module.
        torchscript: the existing TorchScript file that ``build`` loads, with its weights; None for Python code.
    """

    build: Callable[[], torch.nn.Module]
    preprocessing: ImagePreprocessing
    labels: Labels | Callable[[], Labels]
    bundled_weights: Callable[[], Path] | None = None
    hub_weights: Callable[[], Mapping[str, torch.Tensor]] | None = None
    expects: Expects = Expects()
    torchscript: Path | None = None
    adapt_weights: AdaptWeights | None = None


@dataclass(frozen=True)
class TensorRecipe:
    """How to make a module with any tensors as inputs and outputs: one or several, in a list, tuple or mapping.

    Attributes:
        build: returns the eager module, float32, with any weights.
        examples: returns calls for tracing and comparison, each a mapping of input names to tensors, in the module's
            order; axis 0 of every tensor is the batch.
        call: signature of ``forward``: ``arguments`` (one each, in order), or one ``mapping``, ``list`` or ``tuple``.
        outputs: names of the outputs, in order; empty: the keys of a mapping, ``output``, or ``output_0`` and so on.
        dynamic: axes of any length besides the batch, by the name of the input.
        bundled_weights, hub_weights, adapt_weights, torchscript: as in ``Recipe``.
    """

    build: Callable[[], torch.nn.Module]
    examples: Callable[[], Sequence[Mapping[str, torch.Tensor]]]
    call: Literal["arguments", "mapping", "list", "tuple"] = "arguments"
    outputs: tuple[str, ...] = ()
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bundled_weights: Callable[[], Path] | None = None
    hub_weights: Callable[[], Mapping[str, torch.Tensor]] | None = None
    torchscript: Path | None = None
    adapt_weights: AdaptWeights | None = None


AnyRecipe = Recipe | TensorRecipe


def load_recipe(path: Path, root: Path | None = None) -> AnyRecipe:
    """Import a recipe file and return its ``RECIPE``.

    Its imports are searched beside it, then in the project's root, then among installed modules: see
    ``project_modules``.

    Args:
        path: path of the file.
        root: the project's root; None: only modules beside the file are local.

    Raises:
        ExportError: the file does not exist, raises when imported, or has no ``RECIPE`` of the right type.
    """
    if not path.is_file():
        raise ExportError(
            f"no recipe at {path}", tip="name it in the spec under export.recipe, relative to the project's root"
        )
    name = f"marsmith_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ExportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    find_in((path.parent, root) if root else (path.parent,))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ExportError(
            f"the recipe {path} raises when it is imported: {type(error).__name__}: {error}", tip=_tip(error, path)
        ) from error
    recipe = getattr(module, "RECIPE", None)
    if not isinstance(recipe, Recipe | TensorRecipe):
        raise ExportError(f"{path} defines no RECIPE = Recipe(...)", tip="see docs/reference/recipes.md")
    return recipe


def _tip(error: Exception, path: Path) -> str | None:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and missing.startswith("marsmith."):
        return "import the names for a recipe from one place: from marsmith.export import Recipe, TensorRecipe"
    return fix_missing_in_recipe(missing.partition(".")[0], path) if missing else None


def load_image_recipe(path: Path) -> Recipe:
    """Import a recipe file like ``load_recipe``, but only for an image classifier.

    Raises:
        ExportError: as in ``load_recipe``, or the recipe is for another kind of model.
    """
    recipe = load_recipe(path)
    if not isinstance(recipe, Recipe):
        raise ExportError(f"{path} is not a recipe of an image classifier, but a {type(recipe).__name__}")
    return recipe


def imagenet_labels() -> list[str]:
    """Return the 1000 ImageNet class names of torchvision, in the usual order."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
