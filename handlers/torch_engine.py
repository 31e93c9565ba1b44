"""TorchScript run by torch itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

import processor
from engine_errors import damaged


def load(path: Path, device: torch.device, threads: int, precision: str) -> Any:  # noqa: ARG001
    """Load a TorchScript file for inference; threads are torch's own number, and its precision lies in the file.

    Raises:
        RuntimeError: it is no TorchScript file, or a damaged one, or its int8 would overflow on this processor.
    """
    if precision == "int8" and device.type == "cpu" and processor.overflows_in_int8():
        raise RuntimeError(
            f"{path.name} is int8 for torch, which overflows on this processor, as it has no VNNI: export it with the"
            " engine onnxruntime, or in another precision"
        )
    with warnings.catch_warnings():
        # Newer torch deprecates TorchScript, in the log of every worker; it is what this archive holds.
        warnings.simplefilter("ignore")
        try:
            return torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise damaged("torch", path.name, error) from error
