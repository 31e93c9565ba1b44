"""Models that an installed package has by name, and the default model of this repository."""

from __future__ import annotations

from pathlib import Path

from marsmith.config.source_names import RecipeSource
from marsmith.errors import ExportError, MissingDependencyError, UsageError
from marsmith.packages import installed_version
from marsmith.scaffold.model import NewModel, image_spec
from marsmith.scaffold.sources import ModelSource, model_name
from marsmith.scaffold.template import DEFAULT_MODEL, default_model_files

_EXTRAS: dict[str, tuple[str, ...]] = {"torchvision": (), "timm": ("timm",)}


def default_model(template: Path) -> NewModel:
    """Return the default model of this repository, with its lock."""
    return NewModel(DEFAULT_MODEL, tuple(default_model_files(template)))


def packaged_model(source: ModelSource) -> NewModel:
    """Return a classifier of torchvision or timm, with the package's module, preprocessing and labels.

    Raises:
        UsageError: the package has no such classifier, or the handler does not have its preprocessing.
        MissingDependencyError: the package is not installed.
    """
    require_torch()
    from marsmith.export.recipes.source import open_recipe

    try:
        open_recipe(RecipeSource(source.scheme, source.name), Path())
    except ExportError as error:
        raise UsageError(f"--from {source}: {error.message}", tip=error.tip) from error
    name = model_name(source.name.partition("@")[0])
    comment = f"From {source.scheme}'s hub. Without a network: make archive WEIGHTS=FILE (.pth or .safetensors)."
    spec = image_spec(name, f"{source.name} of {source.scheme}", str(source), "hub", comment)
    note = f"the weights come from {source.scheme}'s hub when the archive is built; without a network: WEIGHTS=FILE"
    return NewModel(name, (spec.file(),), _EXTRAS[source.scheme], (note,))


def require_torch() -> None:
    """Make sure that models can be opened; raises MissingDependencyError if not."""
    if installed_version("torch") is None:
        raise MissingDependencyError("torch", extra="export")
