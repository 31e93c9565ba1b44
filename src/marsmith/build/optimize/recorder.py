"""Records the inputs of a handler's module; loaded in a worker as ``sitecustomize``. Imports torch, not marsmith.

The inputs depend on the handler's own preprocessing. ``torch.jit.load`` therefore returns the module in a wrapper that
writes each input to a file.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch

# Environment variables with the target folder, and with the name of the file whose inputs are recorded.
FOLDER, FILE = "MARSMITH_RECORD_INPUTS", "MARSMITH_RECORD_FILE"
NOT_ONE_TENSOR = "not-one-tensor"


class Recorder(torch.nn.Module):
    """A module that records its inputs."""

    def __init__(self, module: torch.nn.Module, folder: Path) -> None:
        super().__init__()
        self.module = module
        self._folder = folder
        self._numbers = itertools.count()

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Record the input and run the module."""
        if len(arguments) == 1 and not named and isinstance(arguments[0], torch.Tensor):
            torch.save(arguments[0].detach().cpu().contiguous(), self._folder / f"{next(self._numbers):06}.pt")
        else:
            (self._folder / NOT_ONE_TENSOR).touch()
        return self.module(*arguments, **named)


def install(folder: Path, file: str) -> None:
    """Make ``torch.jit.load`` record the inputs of the file of this name."""
    load = torch.jit.load

    def loading(source: Any, *arguments: Any, **named: Any) -> Any:
        module: torch.nn.Module = load(source, *arguments, **named)  # type: ignore[no-untyped-call]
        is_meant = isinstance(source, str | os.PathLike) and Path(source).name == file
        return Recorder(module, folder) if is_meant else module

    torch.jit.load = loading  # type: ignore[assignment]


if FOLDER in os.environ:
    install(Path(os.environ[FOLDER]), os.environ[FILE])
