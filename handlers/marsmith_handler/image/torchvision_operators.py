"""torchvision's compiled operators, without the package around them.

Decoding JPEG takes one operator, and detectors in TorchScript take others (``torchvision::nms``). ``import
torchvision`` brings all models and transforms along, and with them torch's compiler: more than a second in each worker
that starts, as much as torch itself (docs/explanation/images.md).
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["load_torchvision_operators"]


def load_torchvision_operators() -> None:
    """Register torchvision's operators with torch; importing torchvision before or after it does no harm.

    Without those for images, where their libraries are missing, Pillow decodes.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it was built for another torch.
    """
    found = importlib.util.find_spec("torchvision")
    if found and found.origin:
        for library in sorted(Path(found.origin).parent.glob("*.so")):
            with suppress(OSError):
                torch.ops.load_library(library)
    if not hasattr(torch.ops.torchvision, "nms"):
        # A build that keeps them elsewhere knows where, and a broken one says what is wrong.
        import torchvision  # noqa: F401
