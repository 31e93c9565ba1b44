"""Engines: what runs the serialized file, or a companion beside it, in the worker.

An engine takes one tensor, a batch, and gives one tensor with as many rows. Settings, in the block ``handler`` of
model-config.yaml:

- ``engine``: ``torch``, ``openvino``, ``onnxruntime`` or ``aot_inductor``;
- ``engine_file``: the companion that it opens; default: the serialized file;
- ``precision``: ``float32``, ``bfloat16``, ``float16`` or ``int8``; openvino computes in float32 where the processor
  lacks one of the 16-bit precisions;
- ``engine_missing``: where the engine is not installed, ``fallback`` lets another one that can read the serialized file
  step in, ``refuse`` refuses the load;
- ``engine_tolerance``: how far the replies to the archive's examples may then be from the validated ones; see
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
# Engines that compute with threads of their own, not with torch's.
OWN_THREADS = frozenset({"openvino", "onnxruntime"})
# Engines that can read a serialized file, by its suffix, the one that steps in first before the others.
READERS = {
    ".pt": ("torch", "openvino"),
    ".pth": ("torch", "openvino"),
    ".onnx": ("onnxruntime", "openvino"),
    ".pt2": ("aot_inductor",),
}
# What has to be installed for an engine besides torch.
DISTRIBUTIONS = {"openvino": "openvino", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class EngineSettings:
    """What the block ``handler`` says about engines; see the module."""

    engine: str = "torch"
    engine_file: str | None = None
    precision: str = "float32"
    engine_missing: str = "fallback"
    engine_tolerance: float | None = None

    @property
    def may_lack(self) -> frozenset[str]:
        """Distributions that the archive records and that may yet be missing, because another engine steps in."""
        needed = DISTRIBUTIONS.get(self.engine)
        return frozenset({needed} if needed and self.engine_missing == "fallback" else ())


@dataclass(frozen=True)
class Engine:
    """A loaded model.

    Attributes:
        run: a batch to one row each; for TorchScript in torch, the module itself.
        name: the engine that really runs.
        precision: the one that really is computed in.
        fell_back: why engine or precision is another than the one that was set; None where neither is.
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
        # TorchServe's frontend drops what is null.
        return {"engine": self.name, "precision": self.precision, "engine_fell_back": self.fell_back or False}


def read_engine_settings(block: Mapping[str, Any]) -> EngineSettings:
    """Read the settings.

    Raises:
        RuntimeError: with every value that is wrong.
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
    """Load the model that lies in ``folder`` with the engine that the settings name, or with one that steps in.

    Args:
        folder: the unpacked archive.
        serialized_file: its name there.
        block: the block ``handler``.
        device: where to compute.
        threads: of the CPU, for one batch.

    Raises:
        RuntimeError: the settings are wrong, a file is missing, damaged or made for another machine, or the engine is
            not there and no other may or can step in.
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
    """Say that an engine computes in another precision than the one that was set; None where it does not."""
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
    """Load a file with an engine; return what runs it, and the precision that it computes in."""
    if not path.is_file():
        raise RuntimeError(f"{path.name} is not in the archive")
    # Each in its own function's scope: an engine that is not used must not be imported, nor need to be installed.
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
