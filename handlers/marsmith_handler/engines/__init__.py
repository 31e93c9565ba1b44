"""Engines: libraries that run the serialized file, or a companion beside it, in the worker.

An engine takes one tensor, a batch, and returns one tensor with as many rows. Settings, in the block ``handler`` of
model-config.yaml:

- ``engine``: ``torch``, ``openvino``, ``onnxruntime`` or ``aot_inductor``;
- ``engine_file``: the companion that it loads; default: the serialized file;
- ``precision``: ``float32``, ``bfloat16``, ``float16`` or ``int8``; openvino computes in float32 if the processor
  lacks one of the 16-bit precisions;
- ``engine_missing``: if the engine is not installed, ``fallback`` uses another one that can read the serialized file,
  and ``refuse`` refuses the load;
- ``engine_tolerance``: maximum difference of the replies to the archive's examples from the validated ones then; see
  ``answers``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsmith_handler.engines.errors import EngineMissing

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

ENGINES = ("torch", "openvino", "onnxruntime", "aot_inductor")
PRECISIONS = ("float32", "bfloat16", "float16", "int8")
POLICIES = ("fallback", "refuse")
# Engines with threads of their own instead of torch's.
OWN_THREADS = frozenset({"openvino", "onnxruntime"})
# Engines that can read a serialized file, by its suffix, in the order of preference as a fallback.
READERS = {
    ".pt": ("torch", "openvino"),
    ".pth": ("torch", "openvino"),
    ".onnx": ("onnxruntime", "openvino"),
    ".pt2": ("aot_inductor",),
}
# Packages that an engine needs besides torch.
DISTRIBUTIONS = {"openvino": "openvino", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class EngineSettings:
    """Engine settings of the block ``handler``; see the module."""

    engine: str = "torch"
    engine_file: str | None = None
    precision: str = "float32"
    engine_missing: str = "fallback"
    engine_tolerance: float | None = None

    @property
    def may_lack(self) -> frozenset[str]:
        """Distributions that the archive records but that may be missing, because there is a fallback engine."""
        needed = DISTRIBUTIONS.get(self.engine)
        return frozenset({needed} if needed and self.engine_missing == "fallback" else ())


@dataclass(frozen=True)
class Engine:
    """A loaded model.

    Attributes:
        run: function of a batch that returns one row for each of its rows; for TorchScript in torch, the module.
        name: name of the engine that runs.
        precision: precision in which it computes.
        fell_back: why engine or precision differ from the settings; None if they do not.
    """

    run: Callable[..., Any]
    name: str
    precision: str
    fell_back: str | None = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Run a batch."""
        result: torch.Tensor = self.run(batch)
        return result

    def describe(self) -> dict[str, Any]:
        """Return the facts for the description of a loaded version."""
        # TorchServe's frontend drops null values.
        return {"engine": self.name, "precision": self.precision, "engine_fell_back": self.fell_back or False}


def read_engine_settings(block: Mapping[str, Any]) -> EngineSettings:
    """Read the settings.

    Raises:
        RuntimeError: with every wrong value.
    """
    values = {key: block[key] for key in EngineSettings.__dataclass_fields__ if block.get(key) is not None}
    problems = [
        f"{key} is {values[key]!r}, not one of {', '.join(known)}"
        for key, known in (("engine", ENGINES), ("precision", PRECISIONS), ("engine_missing", POLICIES))
        if key in values and values[key] not in known
    ]
    file = values.get("engine_file")
    if file is not None and (not isinstance(file, str) or Path(file).name != file):
        problems.append(f"engine_file is {file!r}, not the name of a file beside the serialized file")
    tolerance = values.get("engine_tolerance", 0.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance >= 0:
        problems.append(f"engine_tolerance is {tolerance!r}, not a number from 0 up")
    if problems:
        raise RuntimeError("model-config.yaml, block handler: " + "; ".join(problems))
    return EngineSettings(**values)


def load_engine(
    folder: Path, serialized_file: str, block: Mapping[str, Any], device: torch.device, threads: int
) -> Engine:
    """Load the model in ``folder`` with the engine of the settings, or with a fallback.

    Args:
        folder: the unpacked archive.
        serialized_file: name of the file in ``folder``.
        block: the block ``handler``.
        device: device of the model.
        threads: threads of the CPU for one batch.

    Raises:
        RuntimeError: the settings are wrong, a file is missing, damaged or made for another machine, or the engine is
            missing and there is no fallback.
    """
    settings = read_engine_settings(block)
    path = folder / (settings.engine_file or serialized_file)
    try:
        run, precision = _load(settings.engine, path, device, threads, settings.precision)
    except EngineMissing as error:
        reason = str(error)
    else:
        return Engine(run, settings.engine, precision, _stepped_down(settings, precision))
    others = [name for name in READERS.get(Path(serialized_file).suffix, ("torch",)) if name != settings.engine]
    if settings.engine_missing == "refuse" or not others:
        raise RuntimeError(f"{reason}, and {_why_not(settings, serialized_file)}")
    return _step_in(settings, folder / serialized_file, others, device, threads, reason)


def _stepped_down(settings: EngineSettings, precision: str) -> str | None:
    """Return a message if an engine computes in another precision than the settings say; None if not."""
    if precision == settings.precision:
        return None
    reason = f"this processor has no {settings.precision}, and {settings.engine} computes in {precision}"
    logger.warning("%s", reason)
    return reason


def _step_in(
    settings: EngineSettings, path: Path, others: list[str], device: torch.device, threads: int, reason: str
) -> Engine:
    reasons = [reason]
    # The serialized file of an engine that reads a companion, or that casts by itself, is float32.
    casts = settings.engine_file is not None or path.suffix in (".pt", ".pth")
    precision = "float32" if casts else settings.precision
    for name in others:
        try:
            run, computed = _load(name, path, device, threads, precision)
        except EngineMissing as error:
            reasons.append(str(error))
            continue
        logger.warning("%s: %s runs %s in %s instead", reason, name, path.name, computed)
        return Engine(run, name, computed, reason)
    raise RuntimeError("; ".join(reasons))


def _load(name: str, path: Path, device: torch.device, threads: int, precision: str) -> tuple[Callable[..., Any], str]:
    """Load a file with an engine; return the function that runs it, and the precision in which it computes."""
    if not path.is_file():
        raise RuntimeError(f"{path.name} is not in the archive")
    # Imported here: an engine that is not used must not be imported, and need not be installed.
    if name == "openvino":
        from marsmith_handler.engines import openvino_engine

        model = openvino_engine.load(path, device, threads, precision)
        return model, model.precision
    if name == "onnxruntime":
        from marsmith_handler.engines import onnxruntime_engine as engine
    elif name == "aot_inductor":
        from marsmith_handler.engines import aot_inductor_engine as engine  # type: ignore[no-redef]
    else:
        from marsmith_handler.engines import torch_engine as engine  # type: ignore[no-redef]
    return engine.load(path, device, threads, precision), precision


def _why_not(settings: EngineSettings, serialized_file: str) -> str:
    if settings.engine_missing == "refuse":
        return "engine_missing is refuse"
    return f"no other engine reads {serialized_file}"
