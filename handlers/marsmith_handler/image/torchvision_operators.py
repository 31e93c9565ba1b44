"""torchvision's compiled operators, without the package around them.

Decoding JPEG needs one operator, and detectors in TorchScript need others (``torchvision::nms``). ``import
torchvision`` also imports all models and transforms, and torch's compiler. That takes more than a second in each new
worker, as long as torch itself (docs/explanation/images.md).
"""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["load_torchvision_operators"]


def load_torchvision_operators() -> None:
    """Register torchvision's operators with torch. torchvision may be imported before or after it.

    If the libraries of the image operators are missing, Pillow decodes.

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
        # A build with another location finds them itself, and a broken build raises its own error.
        import torchvision  # noqa: F401
