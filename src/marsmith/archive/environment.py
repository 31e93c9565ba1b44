"""``MAR-INF/environment.txt``: the exact versions of Python and of every distribution that the handler imports.

Lines that begin with ``#`` are comments. ``python==3.11.7`` comes first, followed by one ``name==version`` per line,
sorted, with normalised names (PEP 503). Without the line for Python it is a requirements file for pip.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from marsmith.errors import FormatError
from marsmith.packages import installed_version

FILE_NAME = "MAR-INF/environment.txt"
PYTHON = "python"
_COMMENT = "# What this archive was made with, and what it is compared with where it is loaded."
_LINE = re.compile(r"(?P<name>[A-Za-z0-9]+(?:[-_.]+[A-Za-z0-9]+)*)==(?P<version>[^\s=#]+)")


@dataclass(frozen=True)
class Environment:
    """Exact versions.

    Attributes:
        python: version of Python, such as ``3.11.7``.
        distributions: version by normalised name, as in the metadata of each distribution.
    """

    python: str
    distributions: Mapping[str, str]


def normalise(name: str) -> str:
    """Return the normalised name of a distribution (PEP 503): ``PyYAML`` is ``pyyaml``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def render_environment(environment: Environment) -> str:
    """Render ``environment.txt``; equal environments give equal texts.

    Raises:
        FormatError: a name or version is invalid in a line, or two names are equal when normalised.
    """
    names = [PYTHON, *map(normalise, environment.distributions)]
    problems = [f"{name} stands twice" for name in sorted({name for name in names if names.count(name) > 1})]
    versions = sorted((normalise(name), version) for name, version in environment.distributions.items())
    lines = [f"{name}=={version}" for name, version in [(PYTHON, environment.python), *versions]]
    problems += [f"not a line `name==version`: {line!r}" for line in lines if not _LINE.fullmatch(line)]
    if problems:
        raise FormatError(FILE_NAME, problems)
    return "\n".join([_COMMENT, *lines]) + "\n"


def parse_environment(text: str, source: str = FILE_NAME) -> Environment:
    """Parse ``environment.txt``; names are normalised.

    Raises:
        FormatError: a line has another form, a name occurs twice, or the ``python==`` line is missing. The message
            lists all problems.
    """
    versions: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if not content or content.startswith("#"):
            continue
        match = _LINE.fullmatch(content)
        if not match:
            problems.append(f"line {number}: not `name==version`: {content!r}")
        elif normalise(match["name"]) in versions:
            problems.append(f"line {number}: {match['name']} stands twice")
        else:
            versions[normalise(match["name"])] = match["version"]
    if PYTHON not in versions and not problems:
        problems.append(f"no line `{PYTHON}==version`")
    if problems:
        raise FormatError(source, problems)
    return Environment(versions.pop(PYTHON), versions)


@dataclass(frozen=True)
class VersionDifference:
    """A version that differs from the recorded one.

    Attributes:
        name: ``python``, or the normalised name of a distribution.
        recorded: the version in the archive.
        found: the version here; None if it is not installed.
    """

    name: str
    recorded: str
    found: str | None

    def __str__(self) -> str:
        return f"{self.name} is {self.found or 'not installed'}, recorded with {self.recorded}"


def version_here(name: str) -> str | None:
    """Return the version of a distribution, or of ``python``, in this process; None if it is not installed."""
    return platform.python_version() if name == PYTHON else installed_version(name)


def compare(recorded: Environment, *, installed: Callable[[str], str | None] = version_here) -> list[VersionDifference]:
    """Compare a record with the installed versions: Python first, then by name. Empty if they are equal.

    Args:
        recorded: the archive's environment.
        installed: returns the version of ``python`` or of a distribution; None if it is not installed.
    """
    wanted = {PYTHON: recorded.python, **dict(sorted(recorded.distributions.items()))}
    found = [VersionDifference(name, version, installed(name)) for name, version in wanted.items()]
    return [difference for difference in found if difference.found != difference.recorded]
