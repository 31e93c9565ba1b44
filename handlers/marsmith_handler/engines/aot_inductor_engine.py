"""AOTInductor: runs ``.pt2`` files, machine code for one kind of CPU or GPU, made from a torch.export program."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from marsmith_handler import processor
from marsmith_handler.engines.errors import EngineMissing, damaged

CPU_FLAGS = "MARSMITH_CPU_FLAGS"


def load(path: Path, device: torch.device, threads: int, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ARG001
    """Load a ``.pt2`` file. It uses torch's threads, and the file determines the precision.

    Raises:
        EngineMissing: this torch cannot run such files.
        RuntimeError: the file is damaged, or made for another device or CPU.
    """
    require_fitting_machine(path, device)
    try:
        from torch._inductor import aoti_load_package
    except ImportError as error:
        raise EngineMissing(f"this torch has no AOTInductor ({error})") from error
    try:
        model = aoti_load_package(str(path), device_index=device.index if device.type == "cuda" else -1)
    except (RuntimeError, ValueError, OSError) as error:
        raise damaged("aot_inductor", path.name, error) from error
    return model


def require_fitting_machine(path: Path, device: torch.device) -> None:
    """Refuse a file with code that this machine cannot run: it would end the process without a message.

    Raises:
        RuntimeError: the machine lacks something; the message says what.
    """
    made_for = read_metadata(path)
    kind = made_for.get("AOTI_DEVICE_KEY", device.type)
    if kind != device.type:
        raise RuntimeError(f"{path.name} is made for {kind}, and this worker computes on {device.type}")
    needed = set(made_for.get(CPU_FLAGS, "").split())
    lacking = sorted(needed - processor.flags() - {platform.machine()})
    if lacking:
        raise RuntimeError(f"{path.name} is made for another CPU: this one lacks {', '.join(lacking)}; export it here")
    capability = made_for.get("AOTI_COMPUTE_CAPABILITY", "")
    if kind == "cuda" and capability and capability != _compute_capability(device):
        raise RuntimeError(f"{path.name} is made for GPUs of compute capability {capability}; export it here")


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a ``.pt2`` file.

    Raises:
        RuntimeError: it is not a ``.pt2`` file.
    """
    try:
        with zipfile.ZipFile(path) as records:
            name = next(name for name in sorted(records.namelist()) if name.endswith("wrapper_metadata.json"))
            metadata: dict[str, Any] = json.loads(records.read(name))
            return metadata
    except (zipfile.BadZipFile, StopIteration, ValueError, OSError) as error:
        raise damaged("aot_inductor", path.name, error) from error


def _compute_capability(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"
