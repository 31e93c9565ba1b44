"""Record the environment of an archive: Python and the distributions that the handler imports.

Indirect requirements are not recorded, because they depend on the machine: a CUDA build of torch requires a dozen
distributions that a CPU build does not. Such a record would refuse machines that give the same answers. The server's
own lock file pins all of them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from marsmith.archive.environment import Environment, normalise, version_here
from marsmith.errors import HandlerError
from marsmith.runtime.imports import distributions

# Modules beside the handler that only one engine imports from, and the distributions that an engine needs.
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

    An archive contains all engine modules, because they are small. Only the imports of the chosen engine are recorded.

    Args:
        files: the handler and its local imports.
        always: distributions to record whether the files import them or not.
        allow_missing: skip missing distributions instead of raising, for a machine that only packs.
        engine: engine of the serialized file: ``torch``, ``openvino``, ``onnxruntime`` or ``aot_inductor``.

    Raises:
        HandlerError: a distribution that is imported or always recorded is not installed.
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
