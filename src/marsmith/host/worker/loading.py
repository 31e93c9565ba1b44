"""The handler of an archive: found, imported and initialized as TorchServe's model loader does."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

Handle = Callable[[Any, Any], Any]


class LoadError(Exception):
    """The handler cannot be loaded; the message says why, in one line."""


def load_handler(folder: Path, handler: str, context: Any) -> Handle:
    """Import the handler of an unpacked archive and initialize it; return what answers a batch.

    Raises:
        LoadError: it is not there, or has no entry point.
        Exception: the handler itself failed.
    """
    file, colon, function = handler.partition(":")
    inside = [str(folder / file.rpartition("/")[0])] if colon and "/" in file else []
    sys.path[:0] = [*inside, str(folder)]
    module = _module(file.removesuffix(".py").rpartition("/")[2], handler)
    name = function or "handle"
    if hasattr(module, name):
        entry: Handle = getattr(module, name)
        entry(None, context)
        return entry
    return _of_class(module, context)


def _module(name: str, handler: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the handler itself may be one of TorchServe's; what it imports and does not find is its own fault.
        if error.name != name:
            raise
    if importlib.util.find_spec("ts") is None:
        raise LoadError(
            f"the handler {handler!r} is not in the archive; if it is one of TorchServe's own, install torchserve"
        )
    try:
        return importlib.import_module(f"ts.torch_handler.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"ts.torch_handler.{name}":
            raise
        raise LoadError(f"the handler {handler!r} is neither in the archive nor one of TorchServe's own") from None


def _of_class(module: ModuleType, context: Any) -> Handle:
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    if len(classes) != 1:
        names = ", ".join(each.__name__ for each in classes) or "none"
        raise LoadError(f"expected a function handle or exactly one class in {module.__name__}, found {names}")
    service: Any = classes[0]()
    if not hasattr(service, "handle"):
        raise LoadError(f"the class {classes[0].__name__} has no method handle")
    service.initialize(context)
    handle: Handle = service.handle
    return handle
