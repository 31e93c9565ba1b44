"""Watch the operations of a module on its input while it runs.

This is exact, unlike a warning of the tracer: a number from a shape or a weight never varies and is fine in a trace,
but a number computed from the input is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

_OWN_FILES = (__file__, str(Path(__file__).with_name("checks.py")))
_TORCH = str(Path(torch.__file__).parent)
# Functions between an operation and its caller.
_DISPATCH = frozenset(str(Path(_TORCH) / name) for name in ("_compile.py", "_dynamo/eval_frame.py"))
_MODULE_CALL = str(Path(_TORCH) / "nn" / "modules" / "module.py")


@dataclass(frozen=True)
class Sighting:
    """One operation.

    Attributes:
        operation: its name in ATen.
        place: file and line of the code that called it, outside torch if possible.
        where: name of the called Python function in torch.
    """

    operation: str
    place: str
    where: str


@dataclass
class OperationWatch:
    """Recorded operations.

    Attributes:
        inputs: tensors to follow.
        random: operations that draw random numbers.
        branches: operations that returned a value computed from the inputs to Python; TorchScript keeps its own
            branches.
    """

    inputs: tuple[torch.Tensor, ...]
    random: list[Sighting] = field(default_factory=list)
    branches: list[Sighting] = field(default_factory=list)


class _Follower(TorchDispatchMode):
    def __init__(self, seen: OperationWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen
        self.derived = WeakIdKeyDictionary(dict.fromkeys(seen.inputs, True))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and not _is_switched_off(func, args, kwargs or {}):
            self.seen.random.append(_sighting(func))
        given = tree_flatten((args, kwargs))[0]
        if any(isinstance(one, torch.Tensor) and one in self.derived for one in given):
            outputs = tree_flatten(result)[0]
            for output in outputs:
                if isinstance(output, torch.Tensor):
                    self.derived[output] = True
            if any(isinstance(output, bool | int | float) for output in outputs) and not _is_scripted():
                self.seen.branches.append(_sighting(func))
        return result


@contextmanager
def watch(*inputs: torch.Tensor) -> Iterator[OperationWatch]:
    """Record the operations that run in the context, following values computed from ``inputs``."""
    seen = OperationWatch(inputs)
    with _Follower(seen):
        yield seen


def _is_switched_off(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation with dropout, such as fused attention, has it switched off."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value)
            return bool(given == 0)
    return False


def _is_scripted() -> bool:
    """Return whether TorchScript runs: then the innermost Python frame is torch's own call of a module."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename in _DISPATCH:
        frame = frame.f_back
    return frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) == (_MODULE_CALL, "_call_impl")


def _sighting(func: Any) -> Sighting:
    operation = str(func).rpartition(".")[0].replace(".", "::", 1) or str(func)
    frame, inner = sys._getframe(2), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in _OWN_FILES and not file.startswith(_TORCH):
            return Sighting(operation, f"{file}:{frame.f_lineno}", inner)
        if file in _OWN_FILES and inner:
            break
        if not file.startswith(str(Path(_TORCH) / "utils")):
            inner = frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return Sighting(operation, "in torch", inner)
