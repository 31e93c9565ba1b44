"""TorchScript run by torch itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from marsmith_handler import processor
from marsmith_handler.engines.errors import damaged
from marsmith_handler.graph_checks import absent_device


def load(path: Path, device: torch.device, threads: int, precision: str) -> Any:  # noqa: ARG001
    """Load a TorchScript file for inference. It uses torch's threads, and the file determines the precision.

    Raises:
        RuntimeError: it is not a TorchScript file, it is damaged, it names a device that this machine lacks, or its
            int8 would overflow on this processor.
    """
    module = read(path, device, precision)
    if absent := absent_device(module):
        raise RuntimeError(
            f"{path.name} computes on {absent[0]!r} whatever it is given ({absent[1].kind()}), and this machine has no"
            " such device: make the file again on the CPU, as map_location moves weights, and not what the code names"
        )
    return module


def read(path: Path, device: torch.device, precision: str) -> Any:
    """Read a TorchScript file for another engine; torch need not be able to run it here.

    Raises:
        RuntimeError: it is not a TorchScript file, it is damaged, or its int8 would overflow on this processor.
    """
    if precision == "int8" and device.type == "cpu" and processor.overflows_in_int8():
        raise RuntimeError(
            f"{path.name} is int8 for torch, which overflows on this processor, as it has no VNNI: export it with the"
            " engine onnxruntime, or in another precision"
        )
    with warnings.catch_warnings():
        # Newer torch writes a deprecation warning for TorchScript into the log of every worker.
        warnings.simplefilter("ignore")
        try:
            return torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise damaged("torch", path.name, error) from error
