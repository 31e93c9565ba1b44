"""Where weights come from, loaded without running code that a file may hide."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marsmith.build_stamp import file_sha256
from marsmith.checkpoint import read_checkpoint
from marsmith.errors import ExportError
from marsmith.mlflow_weights import SCHEME as MLFLOW
from marsmith.mlflow_weights import mlflow_weights
from marsmith.names import nearest
from marsmith.recipe import AnyRecipe
from marsmith.weights_file import weights_file

RANDOM_SEED = 0
_OFFLINE_TIP = "name a file (--weights FILE.pth or FILE.safetensors), or take random ones: --weights random"


@dataclass(frozen=True)
class Weights:
    """A state dict and the record of its origin that goes into the archive.

    Attributes:
        state: parameter name to tensor; None for weights drawn at random when the module is built.
        record: ``source`` and what identifies it: file name and SHA-256, or seed; and what ``read_checkpoint`` did.
        file: the file it was read from; None where there was none.
    """

    state: Mapping[str, torch.Tensor] | None
    record: dict[str, Any]
    file: Path | None = None


def load_weights(source: str, recipe: AnyRecipe, root: Path, *, allow_pickle: bool = False) -> Weights:
    """Load the weights that ``source`` names.

    Args:
        source: ``recipe`` (what the recipe brings, or else its hub), ``hub``, ``random``, ``models:/NAME/VERSION``, or
            a path from ``root``, with ``#KEY`` behind it where the file holds several state dicts.
        recipe: whose weights.
        root: what relative paths start from.
        allow_pickle: load also files that can run code.

    Raises:
        ExportError: the source is not there, cannot be reached, or is not a state dict.
        MissingDependencyError: it needs MLflow, which is not installed.
    """
    if recipe.torchscript is not None:
        return _inside_torchscript(source, recipe.torchscript)
    if source == "random":
        return Weights(None, {"source": "random", "seed": RANDOM_SEED})
    if source == "recipe" and recipe.bundled_weights is not None:
        return _from_file(str(recipe.bundled_weights()), Path(), "recipe", allow_pickle)
    if source == "hub" or (source == "recipe" and recipe.hub_weights is not None):
        return _from_hub(recipe)
    if source == "recipe":
        raise ExportError("this recipe brings no weights of its own", tip=_OFFLINE_TIP)
    if source.startswith(MLFLOW):
        with mlflow_weights(source) as path:
            read = _from_file(str(path), Path(), source, allow_pickle)
        return Weights(read.state, read.record)
    return _from_file(source, root, "file", allow_pickle)


def apply_weights(module: torch.nn.Module, weights: Weights) -> None:
    """Copy ``weights`` into ``module``; every key must fit.

    Raises:
        ExportError: keys or shapes that do not fit, each with the nearest one that would.
    """
    if weights.state is None:
        return
    problems = _mismatches(module.state_dict(), weights.state)
    if problems:
        shown = "\n  ".join(problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else []))
        raise ExportError(f"the weights do not fit the module:\n  {shown}", tip="is it the right architecture?")
    module.load_state_dict(dict(weights.state))


def _mismatches(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    problems = []
    for key in wanted.keys() - given.keys():
        near = nearest(key, given.keys() - wanted.keys())
        problems.append(f"missing {key!r}" + (f" (the file has {near!r})" if near else ""))
    problems += [f"unexpected {key!r}" for key in given.keys() - wanted.keys()]
    for key in wanted.keys() & given.keys():
        if wanted[key].shape != given[key].shape:
            problems.append(f"{key!r} has shape {tuple(given[key].shape)}, not {tuple(wanted[key].shape)}")
    return sorted(problems)


def _inside_torchscript(source: str, path: Path) -> Weights:
    if source != "recipe":
        raise ExportError(
            f"the recipe is the TorchScript file {path.name}, which holds its weights; {source!r} has no place to go",
            tip="leave out --weights, and export.weights in the spec",
        )
    if not path.is_file():
        raise ExportError(f"no TorchScript file at {path}", tip="name it from the project's root")
    return Weights(None, {"source": "recipe", "file": path.name, "sha256": file_sha256(path)}, path.resolve())


def _from_hub(recipe: AnyRecipe) -> Weights:
    if recipe.hub_weights is None:
        raise ExportError("this recipe names no hub", tip=_OFFLINE_TIP)
    try:
        state = recipe.hub_weights()
    except (OSError, RuntimeError) as error:  # RuntimeError: a file with a wrong digest
        raise ExportError(f"the hub could not be reached: {error}", tip=_OFFLINE_TIP) from error
    return Weights(state, {"source": "hub", "sha256": _state_digest(state)})


def _from_file(name: str, root: Path, source: str, allow_pickle: bool) -> Weights:
    file = weights_file(name, root)
    if file is None or not file.path.is_file():
        raise ExportError(f"no weights at {file.path if file else name}", tip=_OFFLINE_TIP)
    path, read = file.path, read_checkpoint(file.path, entry=file.entry, allow_pickle=allow_pickle)
    record = {"source": source, "file": path.name, "sha256": file_sha256(path), **read.record}
    return Weights(read.state, record, path.resolve())


def _state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
