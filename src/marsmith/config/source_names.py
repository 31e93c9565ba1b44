"""The names that a spec gives to a recipe and to its weights.

==============================  =====================================================================================
``export/mine.py``              a recipe file
``torchvision:NAME[@WEIGHTS]``  a classifier of torchvision: its weights, labels and preprocessing
``timm:NAME``                   a classifier of timm: the same from its ``pretrained_cfg``
``torchscript:FILE``            an existing TorchScript file that takes normalised images and returns logits
==============================  =====================================================================================

Weights are named by a word (``recipe``, ``hub``, ``random``, ``none``), a file, ``FILE#KEY`` or
``models:/NAME/VERSION``.
Here a name is only read; marsmith.export.recipes.source opens it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import ExportError
from marsmith.names import did_you_mean

# Of a model that is registered with MLflow.
MLFLOW_SCHEME = "models:/"

_SCHEMES = ("torchvision", "timm", "torchscript")
# What is no file: the recipe's own or else its hub's, its hub's, such as are drawn when the module is built, and none.
_WORDS = frozenset({"recipe", "hub", "random", "none"})


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

    def packages(self) -> list[str]:
        """Return the distributions that a named recipe is taken from; those of a file are found from its imports."""
        return [self.scheme] if self.scheme in ("torchvision", "timm") else []


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights.

    Attributes:
        path: where it is, or should be.
        entry: which of its state dicts; None if it holds one.
    """

    path: Path
    entry: str | None


def weights_file(source: str, root: Path) -> WeightsFile | None:
    """Return the file that ``FILE`` or ``FILE#KEY`` names from ``root``; None for a source that is not a file."""
    if source in _WORDS or source.startswith(MLFLOW_SCHEME):
        return None
    name, mark, entry = source.rpartition("#")
    # A mark may belong to the file's own name.
    if mark and not (root / source).is_file():
        return WeightsFile(root / name, entry)
    return WeightsFile(root / source, None)
