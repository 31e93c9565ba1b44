"""Record the environment that an archive is made in.

Recorded are Python and the distributions that the handler imports itself, not what those require in turn. That depends
on the machine (a CUDA build of torch brings a dozen distributions that a CPU build has not), so a record of it would
refuse machines that give the same answers. To pin all of it is the part of the server's own lock file.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from marsmith.archive.environment import Environment, normalise, version_here
from marsmith.errors import HandlerError
from marsmith.runtime.imports import distributions

# Modules beside the handler of which only the chosen engine's imports anything, and what an engine needs installed.
ENGINE_MODULES = {"openvino_engine.py": "openvino", "onnxruntime_engine.py": "onnxruntime"}
ENGINE_DISTRIBUTIONS = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}


def record(
    files: Iterable[Path],
    always: Iterable[str] = ("torch",),
    *,
    allow_missing: bool = False,
    engine: str = "torch",
) -> Environment:
    """Record the exact versions of Python and of the distributions that the files import.

    All engine modules ride along in an archive, as they are small; of what they import counts the chosen engine's.

    Args:
        files: the handler and its local imports.
        always: distributions that are recorded whether the files import them or not.
        allow_missing: leave out what is not installed here, instead of raising: for a machine that only packs.
        engine: what runs the serialized file: ``torch``, ``openvino``, ``onnxruntime`` or ``aot_inductor``.

    Raises:
        HandlerError: something that the files import, or that is always recorded, is not installed here.
    """
    files = [file for file in files if ENGINE_MODULES.get(file.name, engine) == engine]
    always = [*always, *ENGINE_DISTRIBUTIONS.get(engine, ())]
    wanted = sorted({*distributions(files, allow_missing=allow_missing), *map(normalise, always)})
    versions = {name: version_here(name) for name in wanted}
    missing = [name for name, version in versions.items() if version is None]
    if missing and not allow_missing:
        message = f"not installed here, so its version cannot be recorded: {', '.join(missing)}"
        raise HandlerError(message, tip=f"pip install {' '.join(missing)}")
    return Environment(
        platform.python_version(), {name: version for name, version in versions.items() if version is not None}
    )
