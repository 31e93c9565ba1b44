"""Names of recipes and weights in a spec.

==============================  =====================================================================================
``export/mine.py``              a recipe file
``torchvision:NAME[@WEIGHTS]``  a classifier of torchvision: its weights, labels and preprocessing
``timm:NAME``                   a classifier of timm: the same from its ``pretrained_cfg``
``torchscript:FILE``            an existing TorchScript file that takes normalised images and returns logits
``onnx:FILE``                   an existing ONNX file, which is served as it is: tensors in, tensors out
==============================  =====================================================================================

Weights are a word (``recipe``, ``hub``, ``random``, ``none``), a file, ``FILE#KEY`` or ``models:/NAME/VERSION``. This
module only parses names; marsmith.export.recipes.source opens them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import ExportError
from marsmith.names import did_you_mean

# Prefix of a model that is registered with MLflow.
MLFLOW_SCHEME = "models:/"

_SCHEMES = ("torchvision", "timm", "torchscript", "onnx")
# Words instead of a file: the recipe's weights or its hub's, the hub's, random ones from the construction of the
# module, and none.
_WORDS = frozenset({"recipe", "hub", "random", "none"})


@dataclass(frozen=True)
class RecipeSource:
    """The name of a recipe in a spec.

    Attributes:
        scheme: ``file``, ``torchvision``, ``timm``, ``torchscript`` or ``onnx``.
        name: text after the colon; for a file, its path relative to the project's root.
    """

    scheme: str
    name: str

    @classmethod
    def parse(cls, text: str) -> RecipeSource:
        """Parse the value of ``export.recipe``.

        Raises:
            ExportError: the text before the colon is not a known scheme.
        """
        scheme, colon, name = text.partition(":")
        if not colon or "/" in scheme:
            return cls("file", text)
        if scheme not in _SCHEMES or not name:
            raise ExportError(
                f"the recipe {text!r} is not a file or a known name{did_you_mean(scheme, _SCHEMES)}",
                tip=f"name a file, or {', '.join(f'{one}:NAME' for one in _SCHEMES)}",
            )
        return cls(scheme, name)

    @property
    def path(self) -> str | None:
        """Path of the recipe, relative to the project's root; None for a recipe from a package."""
        return self.name if self.scheme in ("file", "torchscript") else None

    def label(self) -> str:
        """Return the name in reports: the file's name, or the name with its scheme."""
        return Path(self.name).name if self.scheme == "file" else f"{self.scheme}:{Path(self.name).name}"

    def packages(self) -> list[str]:
        """Return the distributions of a named recipe; those of a file come from its imports."""
        return [self.scheme] if self.scheme in ("torchvision", "timm") else []


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights.

    Attributes:
        path: path of the file, which may not exist.
        entry: key of the state dict in the file; None if it contains only one.
    """

    path: Path
    entry: str | None


def weights_file(source: str, root: Path) -> WeightsFile | None:
    """Return the file of ``FILE`` or ``FILE#KEY``, relative to ``root``; None for other sources."""
    if source in _WORDS or source.startswith(MLFLOW_SCHEME):
        return None
    name, mark, entry = source.rpartition("#")
    # A # may belong to the file's own name.
    if mark and not (root / source).is_file():
        return WeightsFile(root / name, entry)
    return WeightsFile(root / source, None)
