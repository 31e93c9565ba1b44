"""Open the recipe of a spec: a file, or a model of torchvision, timm or TorchScript."""

from __future__ import annotations

from pathlib import Path

from marsmith.config.source_names import RecipeSource
from marsmith.errors import ExportError
from marsmith.export.recipes.recipe import AnyRecipe, load_recipe
from marsmith.runtime.imports import local_imports


def recipe_files(source: RecipeSource, root: Path) -> list[Path]:
    """Return the files of the recipe, the named one first.

    Raises:
        ExportError: the file does not exist.
    """
    if source.path is None:
        return []
    path = root / source.path
    if not path.is_file():
        raise ExportError(f"no recipe at {path}", tip="name it in the spec under export.recipe, from the root")
    return [path, *local_imports(path, also=(root,))] if source.scheme == "file" else [path]


def open_recipe(source: RecipeSource, root: Path) -> AnyRecipe:
    """Return the recipe.

    Raises:
        ExportError: the name is unknown, or its file is invalid.
        MissingDependencyError: timm is not installed.
    """
    if source.scheme == "torchvision":
        from marsmith.export.recipes.torchvision import torchvision_recipe

        name, _, weights = source.name.partition("@")
        return torchvision_recipe(name, weights or None)
    if source.scheme == "timm":
        from marsmith.export.recipes.timm import timm_recipe

        return timm_recipe(source.name)
    if source.scheme == "torchscript":
        from marsmith.export.recipes.torchscript import torchscript_recipe

        return torchscript_recipe(recipe_files(source, root)[0])
    return load_recipe(root / source.name, root)
