"""Weights: find and load them without running code in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marsmith import files
from marsmith.config.source_names import MLFLOW_SCHEME, weights_file
from marsmith.errors import ExportError
from marsmith.export.recipes.checkpoint import read_checkpoint
from marsmith.export.recipes.mlflow import mlflow_weights
from marsmith.export.recipes.recipe import AdaptWeights, AnyRecipe
from marsmith.export.recipes.state_dicts import advice, problems, unwrapped, without_prefix
from marsmith.names import did_you_mean

RANDOM_SEED = 0
NONE = "none"
_TIP = (
    "name a file (--weights FILE.pth or FILE.safetensors), or take random ones: --weights random; a module without "
    "parameters needs none: --weights none"
)
_SUFFIXES = {".bin", ".ckpt", ".pt", ".pth", ".safetensors"}


@dataclass(frozen=True)
class Weights:
    """A state dict and the record of its origin for the archive.

    Attributes:
        state: tensors by parameter name; None for random weights and for none.
        record: ``source`` and its identification: file name and SHA-256, or seed; the record of ``read_checkpoint``;
            ``stripped`` (the prefix removed from the names), ``leftOut`` (number of names without it).
        file: file of the weights; None if there is none.
    """

    state: Mapping[str, torch.Tensor] | None
    record: dict[str, Any]
    file: Path | None = None


def load_weights(
    source: str,
    recipe: AnyRecipe,
    root: Path,
    *,
    allow_pickle: bool = False,
    strip_prefix: str = "",
    wanted: Collection[str] | None = None,
) -> Weights:
    """Load the weights of ``source``.

    Args:
        source: ``recipe`` (the recipe's own, or else its hub's), ``hub``, ``random``, ``none`` (for a module without
            parameters), ``models:/NAME/VERSION``, or a path relative to ``root``, followed by ``#KEY`` if the file has
            several state dicts.
        recipe: recipe of the model.
        root: folder of relative paths.
        allow_pickle: whether to load files that can run code.
        strip_prefix: take only names that begin with it, and remove it.
        wanted: names in the module; None if they are unknown.

    Raises:
        ExportError: the source does not exist, cannot be reached, or is not a state dict.
        MissingDependencyError: the source needs MLflow, which is not installed.
    """
    if recipe.torchscript is not None:
        return _inside_torchscript(source, recipe.torchscript)
    if source == "random":
        return Weights(None, {"source": "random", "seed": RANDOM_SEED})
    if source == NONE or (source == "recipe" and not _brings_any(recipe) and wanted is not None and not wanted):
        return Weights(None, {"source": NONE})
    return _stripped(_read(source, recipe, root, allow_pickle), strip_prefix, wanted or ())


def apply_weights(module: torch.nn.Module, weights: Weights, *, adapt: AdaptWeights | None = None) -> None:
    """Load ``weights`` into ``module`` strictly, with torch.

    Args:
        module: the built module.
        weights: weights to load.
        adapt: renames the keys of an older state dict; used if the weights do not fit otherwise.

    Raises:
        ExportError: they do not fit; the message has torch's text and the nearest names.
    """
    if weights.state is None:
        held = len(module.state_dict()) if weights.record["source"] == NONE else 0
        if held:
            raise ExportError(f"the module has {held} parameters and buffers, and the weights are 'none'", tip=_TIP)
        return
    found = problems(module, weights.state)
    if found and adapt is not None:
        found = _adapted(module, weights.state, adapt, found)
    if found:
        shown = "\n  ".join(found)
        raise ExportError(f"the weights do not fit the module:\n  {shown}", tip=advice(module, weights.state))


def _adapted(
    module: torch.nn.Module,
    state: Mapping[str, Any],
    adapt: AdaptWeights,
    before: list[str],
) -> list[str]:
    """Load the result of ``adapt`` for a state dict.

    Return torch's messages, or the earlier ones if there is no result.
    """
    try:
        adapted = adapt(state)
    except Exception:  # A library's own code, with weights that may be of another architecture.
        return before
    return problems(module, adapted)


def _brings_any(recipe: AnyRecipe) -> bool:
    return recipe.bundled_weights is not None or recipe.hub_weights is not None


def _read(source: str, recipe: AnyRecipe, root: Path, allow_pickle: bool) -> Weights:
    if source == "recipe" and recipe.bundled_weights is not None:
        return _from_file(str(recipe.bundled_weights()), Path(), "recipe", allow_pickle)
    if source == "hub" or (source == "recipe" and recipe.hub_weights is not None):
        return _from_hub(recipe)
    if source == "recipe":
        raise ExportError("this recipe has no weights of its own", tip=_TIP)
    if source.startswith(MLFLOW_SCHEME):
        with mlflow_weights(source) as path:
            read = _from_file(str(path), Path(), source, allow_pickle)
        return Weights(read.state, read.record)
    return _from_file(source, root, "file", allow_pickle)


def _stripped(weights: Weights, prefix: str, wanted: Collection[str]) -> Weights:
    """Remove the requested prefix from the names, and the prefixes of training wrappers."""
    state: Mapping[str, Any] = weights.state or {}
    taken = without_prefix(state, prefix) if prefix else state
    if prefix and not taken:
        heads = sorted({f"{name.partition('.')[0]}." for name in state})
        raise ExportError(
            f"no name of the weights begins with {prefix!r}{did_you_mean(prefix, heads)}",
            tip=f"they begin with {', '.join(heads[:6])}",
        )
    bare, wrappers = unwrapped(taken, wanted)
    stripped, left_out = prefix + wrappers, len(state) - len(taken)
    record = {**weights.record, **({"stripped": stripped} if stripped else {})}
    return Weights(bare, {**record, **({"leftOut": left_out} if left_out else {})}, weights.file)


def _inside_torchscript(source: str, path: Path) -> Weights:
    if source != "recipe":
        raise ExportError(
            f"the recipe is the TorchScript file {path.name}, which contains its weights; {source!r} cannot be used",
            tip="leave out --weights, and export.weights in the spec",
        )
    if not path.is_file():
        raise ExportError(f"no TorchScript file at {path}", tip="name it from the project's root")
    return Weights(None, {"source": "recipe", "file": path.name, "sha256": files.sha256(path)}, path.resolve())


def _from_hub(recipe: AnyRecipe) -> Weights:
    if recipe.hub_weights is None:
        raise ExportError("this recipe has no hub", tip=_TIP)
    try:
        state = recipe.hub_weights()
    except (OSError, RuntimeError) as error:  # RuntimeError: a file with a wrong digest.
        raise ExportError(f"the hub could not be reached: {error}", tip=_TIP) from error
    return Weights(state, {"source": "hub", "sha256": _state_digest(state)})


def _from_file(name: str, root: Path, source: str, allow_pickle: bool) -> Weights:
    file = weights_file(name, root)
    if file is None or not file.path.is_file():
        raise _no_weights(file.path if file else Path(name))
    path, read = file.path, read_checkpoint(file.path, entry=file.entry, allow_pickle=allow_pickle)
    record = {"source": source, "file": path.name, "sha256": files.sha256(path), **read.record}
    return Weights(read.state, record, path.resolve())


def _no_weights(path: Path) -> ExportError:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
        tip = f"name a file in it: {', '.join(inside)}" if inside else _TIP
        return ExportError(f"the weights at {path} are a folder", tip=tip)
    if path.with_name(f"{path.name}.dvc").is_file():
        return ExportError(f"no weights at {path}, only {path.name}.dvc", tip="download them: dvc pull")
    return ExportError(f"no weights at {path}", tip=_TIP)


def _state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
