"""Put on PYTHONPATH, it lets a worker of TorchServe import torch when it is first used, and not when it starts.

TorchServe's worker imports torch to ask whether a reply is a tensor, which costs each worker two processor seconds.
A handler without tensors never needs it. One with tensors gets the whole of torch at its first use.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

WORKER = "model_service_worker.py"
# It asks `isinstance(reply, torch.Tensor)`: as long as torch is not imported, nothing is a tensor.
ASKS_ONLY = "ts.protocol.otf_message_handler"


class NoTensor:
    """Stands for the class of tensors while there are none."""


class Later(importlib.util._LazyModule):  # type: ignore[name-defined, misc]
    """Torch, not yet imported."""

    def __getattribute__(self, name: str) -> Any:
        """Import torch, unless the worker asks whether a reply is a tensor."""
        if name == "Tensor" and sys._getframe(1).f_globals.get("__name__") == ASKS_ONLY:
            return NoTensor
        object.__setattr__(self, "__class__", importlib.util._LazyModule)  # type: ignore[attr-defined]
        return getattr(self, name)


class Loader(importlib.util.LazyLoader):
    """Makes a module that imports torch when it is first used."""

    def exec_module(self, module: ModuleType) -> None:
        """Prepare the module."""
        super().exec_module(module)
        object.__setattr__(module, "__class__", Later)


class Finder:
    """Finds torch where it is, and gives it another loader."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find torch, once."""
        if name != "torch":
            return None
        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            spec.loader = Loader(spec.loader)
        return spec


if any(argument.endswith(WORKER) for argument in sys.orig_argv):
    sys.meta_path.insert(0, Finder)
