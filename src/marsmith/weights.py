"""Where weights come from, loaded without running code that a file may hide."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from marsmith.build_stamp import file_sha256
from marsmith.errors import ExportError
from marsmith.names import nearest
from marsmith.recipe import Recipe

RANDOM_SEED = 0
_OFFLINE_TIP = "name a file (--weights FILE.pth or FILE.safetensors), or take random ones: --weights random"


@dataclass(frozen=True)
class Weights:
    """A state dict and the record of its origin that goes into the archive.

    Attributes:
        state: parameter name to tensor; None for weights drawn at random when the module is built.
        record: ``source`` and what identifies it: file name and SHA-256, or seed.
        file: the file it was read from; None where there was none.
    """

    state: Mapping[str, torch.Tensor] | None
    record: dict[str, Any]
    file: Path | None = None


def load_weights(source: str, recipe: Recipe, root: Path) -> Weights:
    """Load the weights that ``source`` names: ``recipe``, ``hub``, ``random``, or a path from ``root``.

    Raises:
        ExportError: the source is not there, cannot be reached, or is not a state dict.
    """
    if source == "random":
        return Weights(None, {"source": "random", "seed": RANDOM_SEED})
    if source == "recipe":
        if recipe.bundled_weights is None:
            raise ExportError("this recipe brings no weights of its own", tip=_OFFLINE_TIP)
        return _from_file(Path(recipe.bundled_weights()), "recipe")
    if source == "hub":
        return _from_hub(recipe)
    return _from_file(root / source, "file")


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


def _from_hub(recipe: Recipe) -> Weights:
    if recipe.hub_weights is None:
        raise ExportError("this recipe names no hub", tip=_OFFLINE_TIP)
    try:
        state = recipe.hub_weights()
    except OSError as error:
        raise ExportError(f"the hub could not be reached: {error}", tip=_OFFLINE_TIP) from error
    return Weights(state, {"source": "hub", "sha256": _state_digest(state)})


def _from_file(path: Path, source: str) -> Weights:
    if not path.is_file():
        raise ExportError(f"no weights at {path}", tip=_OFFLINE_TIP)
    read = _read_safetensors if path.suffix == ".safetensors" else _read_pickle
    record = {"source": source, "file": path.name, "sha256": file_sha256(path)}
    return Weights(read(path), record, path.resolve())


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ExportError(f"{path} is not a whole .safetensors file: {error}") from error


def _read_pickle(path: Path) -> Mapping[str, torch.Tensor]:
    """Read a ``torch.save`` file; ``weights_only`` keeps it from running code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ExportError(
            f"{path} is no torch.save file, or holds more than tensors, and then loading it could run code",
            tip="save its state dict: torch.save(module.state_dict(), path), or use .safetensors",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ExportError(f"{path} is truncated or not a torch.save file: {str(error).splitlines()[0]}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ExportError(f"{path} is not a state dict (parameter name to tensor), but {type(state).__name__}")
    return state


def _state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
