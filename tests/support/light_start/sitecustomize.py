"""Put on PYTHONPATH, it lets the Python processes of the tests import less when they start.

- torchvision imports torch's compiler to ask one question of it, and to keep one function from it, which costs each
  process more than all the rest of torch. Here it imports the compiler if it asks, and nothing compiles that function.
  TorchServe's handlers import it for OpenVINO, and do without if there is none; no test compiles a model with it.
- torch registers at its import how its operators answer for tensors without values, for a third of its time. Here it
  does so when it imports its compiler, which also exports with such tensors.
- TorchServe's worker imports torch to ask whether a reply is a tensor, which costs each worker two processor seconds.
  If ``VARIABLE`` is set, it imports torch when torch is first used: a handler without tensors never needs it, and one
  with tensors gets the whole of torch. Such a worker also ends faster, often before the frontend has read its last
  lines, so that it waits for that, as those of our handlers do.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from threading import RLock
from types import CodeType, ModuleType
from typing import Any

VARIABLE = "MARSMITH_TESTS_LIGHT_WORKERS"
WORKER = "model_service_worker.py"
LAST_LINES = Path(__file__).parents[3] / "handlers" / "marsmith_handler" / "last_lines.py"
# It asks `isinstance(reply, torch.Tensor)`: as long as torch is not imported, nothing is a tensor.
ASKS_ONLY = "ts.protocol.otf_message_handler"
# A module has these before it runs, and the inspect module asks all modules for them. Not __path__: it is asked for
# when a submodule is imported, which needs the rest.
OF_ALL_MODULES = {"__class__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}
# Of one thread, which may ask for names of torch while it imports torch.
IMPORTING = RLock()
# What is written instead of a line of a module. In as many lines, as TorchScript reads the source of functions.
WITHOUT_COMPILER = {
    "torchvision.ops.roi_align": (
        b"from torch._dynamo.utils import is_compile_supported\n",
        b"def is_compile_supported(kind): import torch._dynamo as t; return t.utils.is_compile_supported(kind)\n",
    ),
    "torchvision.tv_tensors": (b"\n@torch.compiler.disable\n", b"\n\n"),
    "ts.torch_handler.base_handler": (b"    import openvino.torch  # nopycln: import\n", b"    raise ImportError\n"),
}


class NoTensor:
    """Stands for the class of tensors while there are none."""


class Later(ModuleType):
    """A module to import later. Not importlib's LazyLoader: torch deletes names of itself, where that one recurses."""

    def __getattribute__(self, name: str) -> Any:
        """Import the module, unless all modules have the name, or the worker asks if a reply is a tensor."""
        if name in OF_ALL_MODULES:
            return ModuleType.__getattribute__(self, name)
        if name == "Tensor" and sys._getframe(1).f_globals.get("__name__") == ASKS_ONLY:
            return NoTensor
        with IMPORTING:
            spec = ModuleType.__getattribute__(self, "__spec__")
            if type(self) is Later and not spec.loader.begun:
                spec.loader.begun = True
                spec.loader.real.exec_module(self)
                object.__setattr__(self, "__class__", ModuleType)
        return ModuleType.__getattribute__(self, name)


class LaterLoader(Loader):
    """Makes a module that is imported when it is first used."""

    def __init__(self, real: Loader) -> None:
        self.real = real
        self.begun = False

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty, now that Python has set what it needs."""
        module.__class__ = Later


class MetaLater(LaterLoader):
    """Makes the module later that says how operators answer for tensors without values, but for one thing in it."""

    def exec_module(self, module: ModuleType) -> None:
        """Let generators of random numbers be made, which waits for a class that this module sets."""
        super().exec_module(module)
        core = sys.modules["torch._C"]
        if hasattr(core, "_set_generator_metaclass"):
            core._set_generator_metaclass(import_module("torch._custom_class_base").CustomClassBaseMeta)


class WithoutCompiler(SourceFileLoader):
    """Loads a module of torchvision that imports torch's compiler, without it."""

    def __init__(self, loader: SourceFileLoader) -> None:
        super().__init__(loader.name, loader.path)

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source with another line."""
        return self.source_to_code(self.get_data(self.path).replace(*WITHOUT_COMPILER[fullname]), self.path)


class Compiler(SourceFileLoader):
    """Loads torch's compiler, after what it asks for tensors without values."""

    def __init__(self, loader: SourceFileLoader) -> None:
        super().__init__(loader.name, loader.path)

    def exec_module(self, module: ModuleType) -> None:
        """Import that first."""
        vars(sys.modules["torch"]._meta_registrations)
        super().exec_module(module)


class Finder(MetaPathFinder):
    """Finds a module where it is, once, and gives it another loader."""

    def __init__(self, name: str, loader: type[LaterLoader | WithoutCompiler | Compiler]) -> None:
        self.name = name
        self.loader = loader

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find the module."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = self.loader(spec.loader)
        return spec


def configure_logging(**settings: Any) -> None:
    """Configure logging as TorchServe's worker wants it, and wait after each traceback until it has been read."""
    logging.basicConfig = basic_config
    logging.basicConfig(**settings)
    scope = runpy.run_path(str(LAST_LINES))
    scope["keep_last_lines"]()


sys.meta_path[:0] = [Finder(name, WithoutCompiler) for name in WITHOUT_COMPILER]
sys.meta_path[:0] = [Finder("torch._meta_registrations", MetaLater), Finder("torch._dynamo", Compiler)]
if VARIABLE in os.environ and any(argument.endswith(WORKER) for argument in sys.orig_argv):
    sys.meta_path.insert(0, Finder("torch", LaterLoader))
    basic_config = logging.basicConfig
    logging.basicConfig = configure_logging
