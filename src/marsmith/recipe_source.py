"""Where a recipe comes from: a file, or a name that stands for one, as ``torchvision:resnet18``.

==============================  =====================================================================================
``export/mine.py``              a recipe file
``torchvision:NAME[@WEIGHTS]``  a classifier of torchvision: its weights, labels and preprocessing
``timm:NAME``                   a classifier of timm: the same from its ``pretrained_cfg``
``torchscript:FILE``            an existing TorchScript file that takes normalised images and returns logits
==============================  =====================================================================================

Telling what a name stands for needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import ExportError
from marsmith.imports import local_imports
from marsmith.names import did_you_mean
from marsmith.recipe import AnyRecipe, load_recipe

_SCHEMES = ("torchvision", "timm", "torchscript")


@dataclass(frozen=True)
class RecipeSource:
    """A recipe as a spec names it.

    Attributes:
        scheme: ``file``, ``torchvision``, ``timm`` or ``torchscript``.
        name: what follows the colon; of a file, its path from the project's root.
    """

    scheme: str
    name: str

    @classmethod
    def parse(cls, text: str) -> RecipeSource:
        """Read what stands under ``export.recipe``.

        Raises:
            ExportError: a name before a colon that stands for nothing.
        """
        scheme, colon, name = text.partition(":")
        if not colon or "/" in scheme:
            return cls("file", text)
        if scheme not in _SCHEMES or not name:
            raise ExportError(
                f"the recipe {text!r} is neither a file nor a name{did_you_mean(scheme, _SCHEMES)}",
                tip=f"name a file, or {', '.join(f'{one}:NAME' for one in _SCHEMES)}",
            )
        return cls(scheme, name)

    @property
    def path(self) -> str | None:
        """The file that the recipe lies in, from the project's root; None for one that is taken from a package."""
        return self.name if self.scheme in ("file", "torchscript") else None

    def label(self) -> str:
        """Return what reports call it: the file's name, or the name with its scheme."""
        return Path(self.name).name if self.scheme == "file" else f"{self.scheme}:{Path(self.name).name}"

    def files(self, root: Path) -> list[Path]:
        """Return the files that the recipe consists of, the one that is named first.

        Raises:
            ExportError: there is no such file.
        """
        if self.path is None:
            return []
        path = root / self.path
        if not path.is_file():
            raise ExportError(f"no recipe at {path}", tip="name it in the spec under export.recipe, from the root")
        return [path, *local_imports(path, also=(root,))] if self.scheme == "file" else [path]

    def packages(self) -> list[str]:
        """Return the distributions that a named recipe is taken from; those of a file are found from its imports."""
        return [self.scheme] if self.scheme in ("torchvision", "timm") else []

    def open(self, root: Path) -> AnyRecipe:
        """Return the recipe.

        Raises:
            ExportError: there is none of that name, or its file is broken.
            MissingDependencyError: timm is not installed.
        """
        if self.scheme == "torchvision":
            from marsmith.torchvision_recipe import torchvision_recipe

            name, _, weights = self.name.partition("@")
            return torchvision_recipe(name, weights or None)
        if self.scheme == "timm":
            from marsmith.timm_recipe import timm_recipe

            return timm_recipe(self.name)
        if self.scheme == "torchscript":
            from marsmith.torchscript_recipe import torchscript_recipe

            return torchscript_recipe(self.files(root)[0])
        return load_recipe(root / self.name, root)
