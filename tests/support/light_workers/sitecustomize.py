"""Put on PYTHONPATH, it lets a worker of TorchServe import torch when it is first used, and not when it starts.

TorchServe's worker imports torch to ask whether a reply is a tensor, which costs each worker two processor seconds.
A handler without tensors never needs it. One with tensors gets the whole of torch at its first use.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import ModuleType
from typing import Any

WORKER = "model_service_worker.py"
# It asks `isinstance(reply, torch.Tensor)`: as long as torch is not imported, nothing is a tensor.
ASKS_ONLY = "ts.protocol.otf_message_handler"
# Of one thread, which may ask for names of torch while it imports torch.
IMPORTING = RLock()


class NoTensor:
    """Stands for the class of tensors while there are none."""


class Later(ModuleType):
    """Torch, not yet imported. Not importlib's LazyLoader: torch deletes names of itself, where that one recurses."""

    def __getattribute__(self, name: str) -> Any:
        """Import torch, unless the worker asks whether a reply is a tensor."""
        if name == "Tensor" and sys._getframe(1).f_globals.get("__name__") == ASKS_ONLY:
            return NoTensor
        with IMPORTING:
            spec = ModuleType.__getattribute__(self, "__spec__")
            if type(self) is Later and not spec.loader.begun:
                spec.loader.begun = True
                spec.loader.of_torch.exec_module(self)
                object.__setattr__(self, "__class__", ModuleType)
        return ModuleType.__getattribute__(self, name)


class LaterLoader(Loader):
    """Makes a module that imports torch when it is first used."""

    def __init__(self, of_torch: Loader) -> None:
        self.of_torch = of_torch
        self.begun = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty, now that Python has set what it needs."""
        module.__class__ = Later


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
            spec.loader = LaterLoader(spec.loader)
        return spec


if any(argument.endswith(WORKER) for argument in sys.orig_argv):
    sys.meta_path.insert(0, Finder)
