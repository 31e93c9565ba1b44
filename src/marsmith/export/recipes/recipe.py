"""An export recipe: how one model's eager module is built, what it takes, and what its outputs are called.

A recipe is a Python file under ``export/`` with one name, ``RECIPE``: a ``Recipe`` for an image classifier, a
``TensorRecipe`` for anything else. This module imports no torch, so that a recipe can be described without it.
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

# Per channel (R, G, B) of ImageNet's training images, pixel values 0 to 1: the figures of torchvision's references.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]
AdaptWeights = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Labels = Sequence[str] | Mapping[str, Any] | Mapping[int, Any]


@dataclass(frozen=True)
class ImagePreprocessing:
    """What happens to a photo before the eager module sees it.

    Resizing and cropping are done by the handler, on uint8 pixels. Normalising happens inside the exported graph, so
    that one byte a value is copied and the two can never differ.

    Attributes:
        resize: length of the shorter side after resizing, in pixels.
        crop: height and width of the centre crop, in pixels.
        mean, std: per channel (R, G, B), in units of pixel values 0 to 1.
        interpolation: how the handler resizes, always with antialiasing.
    """

    resize: int = 256
    crop: tuple[int, int] = (224, 224)
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class Expects:
    """Which part of the way from pixels to probabilities the module goes itself; the graph around it adds the rest.

    Attributes:
        pixels: what the module takes: ``normalised`` floats, ``unit`` floats 0 to 1 (it normalises itself), or
            ``uint8`` values 0 to 255.
        output: what it returns: ``logits`` or ``probabilities``.
    """

    pixels: Literal["normalised", "unit", "uint8"] = "normalised"
    output: Literal["logits", "probabilities"] = "logits"


@dataclass(frozen=True)
class Recipe:
    """How an image classifier is made.

    Attributes:
        build: returns the eager module, float32, with any weights; it takes (N, 3, H, W) and returns (N, classes), as
            ``expects`` says: normalised floats and logits where it says nothing.
        preprocessing: what happens to a photo first.
        labels: the class names, or a function that returns them, in any form that ``class_names`` tells apart: in the
            order of the outputs, index to name, or name to index.
        bundled_weights: returns the path of a state dict that an installed package carries; None where there is none.
        hub_weights: downloads and returns a state dict; None where there is no hub for it.
        adapt_weights: gives a state dict that an older release made the names that the module has now; None where there
            is no such.
        expects: what the module takes and returns.
        torchscript: the existing TorchScript file that ``build`` loads, which holds its weights; None for Python code.
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
    """How a module is made that takes and returns tensors of any kind: one or several, in a list, tuple or mapping.

    Attributes:
        build: returns the eager module, float32, with any weights.
        examples: returns calls to trace with and to compare on, each a mapping of input names to tensors, in the order
            in which the module takes them; axis 0 of every tensor is the batch.
        call: how ``forward`` takes them: ``arguments`` (one each, in order), or in one ``mapping``, ``list`` or
            ``tuple``.
        outputs: names of the outputs, in order; empty: the keys of a mapping, ``output``, or ``output_0`` and so on.
        dynamic: axes besides the batch that may have any length, by the name of the input.
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

    What it imports is looked up beside it, then in the project's root, then among what is installed: see
    ``project_modules``.

    Args:
        path: of the file.
        root: of the project; None: only what lies beside the file is local.

    Raises:
        ExportError: no such file, it raises when imported, or it has no ``RECIPE`` of the right type.
    """
    if not path.is_file():
        raise ExportError(
            f"no recipe at {path}", tip="name it in the spec under export.recipe, from the project's root"
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
        raise ExportError(f"{path} defines no RECIPE = Recipe(...)", tip="see docs/how-to/recipes.md")
    return recipe


def _tip(error: Exception, path: Path) -> str | None:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and missing.startswith("marsmith."):
        return "what a recipe needs comes from one place: from marsmith.export import Recipe, TensorRecipe"
    return fix_missing_in_recipe(missing.partition(".")[0], path) if missing else None


def load_image_recipe(path: Path) -> Recipe:
    """Import a recipe file as ``load_recipe`` does, where only an image classifier will do.

    Raises:
        ExportError: as ``load_recipe``, or it is the recipe of another kind of model.
    """
    recipe = load_recipe(path)
    if not isinstance(recipe, Recipe):
        raise ExportError(f"{path} is no recipe of an image classifier, but a {type(recipe).__name__}")
    return recipe


def imagenet_labels() -> list[str]:
    """Return the 1000 ImageNet class names that torchvision ships, in the usual order."""
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
