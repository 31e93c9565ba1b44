"""Export of weights to a serialized file that gives the same answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.export.folder import Export
    from marsmith.export.model import export_model
    from marsmith.export.recipes.recipe import Expects, ImagePreprocessing, Recipe, TensorRecipe, imagenet_labels

__all__ = ["Expects", "Export", "ImagePreprocessing", "Recipe", "TensorRecipe", "export_model", "imagenet_labels"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Expects": "marsmith.export.recipes.recipe",
        "Export": "marsmith.export.folder",
        "ImagePreprocessing": "marsmith.export.recipes.recipe",
        "Recipe": "marsmith.export.recipes.recipe",
        "TensorRecipe": "marsmith.export.recipes.recipe",
        "export_model": "marsmith.export.model",
        "imagenet_labels": "marsmith.export.recipes.recipe",
    },
)
