"""A form loaded as a worker will load it: through the project's own ``handlers/engines.py``. Imports torch."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from marsmith.config.form import BASE, Form, handler_block
from marsmith.errors import ExportError

MODULE = "engines"


def load_in_engine(
    handlers: Path | None, files: Any, form: Form, device: str, threads: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Load the files of a form; return a function of uint8 (N, 3, H, W) that gives float32 on the CPU.

    Args:
        handlers: folder with the engines.py to use; None where the handler brings none.
        files: what ``serialize`` gave.
        form: how to run them.
        device: ``cpu`` or ``cuda``.
        threads: for one operation.

    Raises:
        ExportError: the handler cannot run this form.
    """
    place = torch.device(device)
    if handlers is None:
        if form != BASE:
            raise ExportError(
                f"the handler brings no {MODULE}.py, so no worker could run {form}",
                tip="build on handlers/base_handler.py, or export torchscript/float32/torch",
            )
        module = _load_torchscript(files.serialized_file, place)
        return lambda images: module(images.to(place)).cpu()
    sys.path.insert(0, str(handlers))
    try:
        engines = importlib.import_module(MODULE)
        block = handler_block(form, files.engine_file, "refuse")
        loaded = engines.load_engine(files.serialized_file.parent, files.serialized_file.name, block, place, threads)
    finally:
        sys.path.remove(str(handlers))
    if loaded.name != form.engine:
        raise ExportError(f"{form}: the engine that loads is {loaded.name}, not {form.engine}")
    return lambda images: loaded(images.to(place)).cpu()


def _load_torchscript(path: Path, device: torch.device) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device)
    return module.eval()
