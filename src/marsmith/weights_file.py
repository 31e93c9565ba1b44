"""Which file a source of weights names, if it names one; no tensor is read, and torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marsmith.mlflow_weights import SCHEME as MLFLOW

# What is no file: the recipe's own or else its hub's, its hub's, such as are drawn when the module is built, and none.
_WORDS = frozenset({"recipe", "hub", "random", "none"})


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
    if source in _WORDS or source.startswith(MLFLOW):
        return None
    name, mark, entry = source.rpartition("#")
    # A mark may belong to the file's own name.
    if mark and not (root / source).is_file():
        return WeightsFile(root / name, entry)
    return WeightsFile(root / source, None)
