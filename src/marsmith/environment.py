"""The environment that an archive was made in: recorded at the build, compared wherever it is used.

Recorded are Python and the distributions that the handler imports itself, not what those require in turn. That depends
on the machine (a CUDA build of torch brings a dozen distributions that a CPU build has not), so a record of it would
refuse machines that give the same answers. To pin all of it is the part of the server's own lock file.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from marsmith.errors import HandlerError
from marsmith.formats.environment import PYTHON, Environment, normalise
from marsmith.imports import distributions
from marsmith.installed import installed_version

# Modules beside the handler of which only the chosen engine's imports anything, and what an engine needs installed.
ENGINE_MODULES = {"openvino_engine.py": "openvino", "onnxruntime_engine.py": "onnxruntime"}
ENGINE_DISTRIBUTIONS = {"openvino": ("openvino",), "onnxruntime": ("onnxruntime",)}


@dataclass(frozen=True)
class Difference:
    """A version that is not the recorded one.

    Attributes:
        name: ``python``, or the normalised name of a distribution.
        recorded: the version in the archive.
        found: the version here; None where it is not installed.
    """

    name: str
    recorded: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.name} is {self.found or 'not installed'}, recorded with {self.recorded}"


def version_here(name: str) -> str | None:
    """Return the version of a distribution, or of ``python``, in this process; None where it is not installed."""
    return platform.python_version() if name == PYTHON else installed_version(name)


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


def compare(recorded: Environment, *, installed: Callable[[str], str | None] = version_here) -> list[Difference]:
    """Compare a record with what is installed; Python first, then by name; empty where all is as recorded.

    Args:
        recorded: the archive's environment.
        installed: gives the version for ``python`` and for a distribution's name; None where it is not installed.
    """
    wanted = {PYTHON: recorded.python, **dict(sorted(recorded.distributions.items()))}
    found = [Difference(name, version, installed(name)) for name, version in wanted.items()]
    return [difference for difference in found if difference.found != difference.recorded]
