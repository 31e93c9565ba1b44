"""Read a state dict from the usual kinds of files, without running code in a file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from marsmith.error_text import useful_line
from marsmith.errors import ExportError
from marsmith.export.recipes.weights_kind import weights_kind
from marsmith.names import did_you_mean

# Keys of the state dict in training checkpoints; the plain weights come before their average.
_NESTS = ("state_dict", "model_state_dict", "model", "ema", "state_dict_ema", "model_ema", "net", "module")
# torch.load's message for a pickle that contains other things than tensors.
_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")
# Key of Module.get_extra_state(), whose value may be anything.
_EXTRA_STATE = "_extra_state"
_PICKLE_TIP = (
    "save its state dict: torch.save(module.state_dict(), path), or use .safetensors; if you trust the origin of the "
    "file as you trust a program: --unsafe-weights"
)


@dataclass(frozen=True)
class Checkpoint:
    """A state dict, and how it was read.

    Attributes:
        state: tensors by parameter name.
        record: record for the archive: ``entry`` (its key in the file), ``pickle`` (True if loading could run code).
    """

    state: Mapping[str, torch.Tensor]
    record: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path, *, entry: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Read a ``.safetensors`` file, or a file of ``torch.save`` with a state dict, a mapping of them, or a module.

    Args:
        path: the file.
        entry: key of the state dict, if there are several; None: the first of the usual ones.
        allow_pickle: whether to load files that can run code: a whole module, or settings of a class.

    Raises:
        ExportError: the file is truncated or of another kind, contains no state dict, or could run code and
            ``allow_pickle`` is False.
    """
    kind = weights_kind(path)
    if kind == "safetensors":
        return Checkpoint(_read_safetensors(path))
    if kind == "torchscript":
        raise ExportError(
            f"{path} is a TorchScript file, not a state dict",
            tip=f"name it as the recipe: export.recipe: torchscript:{path.name}, or see docs/reference/recipes.md",
        )
    # torch.export.load unpickles without restrictions.
    content, record = _read_pickle(path, allow_pickle, safely=kind == "torch")
    state, found = _entry(content, entry, path)
    return Checkpoint(state, {**record, **found})


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ExportError(f"{path} is not a complete .safetensors file: {error}") from error


def _read_pickle(path: Path, allow_pickle: bool, *, safely: bool) -> tuple[Any, dict[str, Any]]:
    holds = "more than tensors"
    if safely:
        try:
            return _load(path, weights_only=True), {}
        except pickle.UnpicklingError as error:
            found = _CLASS.search(str(error))
            holds += f" ({found[1]})" if found else ""
        except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            raise ExportError(f"{path} is truncated or not a torch.save file: {useful_line(error)}") from error
    if allow_pickle:
        return _run_pickle(path), {"pickle": True}
    raise ExportError(f"{path} holds {holds}, and then loading it could run code", tip=_PICKLE_TIP)


def _load(path: Path, *, weights_only: bool) -> Any:
    # Opened here, because torch would decide by the suffix of a path.
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=weights_only)


def _run_pickle(path: Path) -> Any:
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).state_dict
        return _load(path, weights_only=False)
    except Exception as error:  # Code in a pickle may raise any exception.
        tip = "a pickled module needs the modules of its classes on PYTHONPATH, by the names they had when it was saved"
        raise ExportError(f"{path} cannot be unpickled: {type(error).__name__}: {error}", tip=tip) from error


def _entry(content: Any, wanted: str | None, path: Path) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]]:
    """Return the state dict in ``content``, and its key."""
    if wanted is None and (state := _as_state(content)) is not None:
        return state, {}
    found = {key: value for key, value in content.items() if _as_state(value)} if isinstance(content, Mapping) else {}
    if wanted is not None and wanted not in found:
        raise ExportError(
            f"{path} has no state dict under {wanted!r}{did_you_mean(wanted, map(str, found))}",
            tip=f"it has {', '.join(map(repr, found)) or 'none'}",
        )
    chosen = wanted or next((key for key in _NESTS if key in found), None) or (next(iter(found)) if found else None)
    if chosen is None or (len(found) > 1 and chosen not in (*_NESTS, wanted)):
        what = f"a mapping of {_shown(content)}" if isinstance(content, Mapping) else type(content).__name__
        raise ExportError(
            f"{path} is not a state dict (parameter name to tensor), but {what}",
            tip="name the key that it lies under: --weights FILE.pth#KEY",
        )
    state = _as_state(found[chosen])
    others = sorted(str(key) for key in found if key != chosen)
    return state or {}, {"entry": str(chosen), **({"otherEntries": others} if others else {})}


def _as_state(value: Any) -> Mapping[str, torch.Tensor] | None:
    """Return ``value`` as a state dict if it is one or a module; else None."""
    if isinstance(value, torch.nn.Module):
        state: Mapping[str, torch.Tensor] = value.state_dict()
        return state
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return None
    values = [one for key, one in value.items() if key.rpartition(".")[2] != _EXTRA_STATE]
    return value if values and all(isinstance(one, torch.Tensor) for one in values) else None


def _shown(keys: Iterable[Any], most: int = 6) -> str:
    names = [repr(key) for key in keys]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
