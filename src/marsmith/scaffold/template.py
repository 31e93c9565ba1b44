"""Files of this repository that are copied into a new project, and the parts that depend on its model.

A checkout is read directly. An installed wheel has a copy with the same names (pyproject.toml, force-include).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from marsmith import __version__
from marsmith.packages import installed_version

DEFAULT_MODEL = "efficientnet_lite0"
# Folder of the recipe that `marsmith new` writes, and of its weights.
RECIPES = "export"

_COPIED = (
    "handlers",
    "config",
    "config.properties",
    "model_store/README.md",
    "tools/clean.sh",
    "tools/flow.mk",
    ".gitignore",
)
# The specs of this repository's own models are not copied.
_SPECS = Path("config/models")
_RENAMED = {"tools/new_project/Makefile": "Makefile", "tools/new_project/test_model.py": "tests/test_model.py"}
# Characters that make accepts unchanged within double quotes; a path with others is not written.
_PLAIN_PATH = re.compile(r"[\w./ +@:,~=-]+")


@dataclass(frozen=True)
class NewFile:
    """One file of a new project.

    Attributes:
        place: path from the project's root.
        content: bytes, text, or the file to copy.
    """

    place: str
    content: bytes | str | Path


def common_files(template: Path, model: str, extras: Sequence[str], packages: Sequence[str] = ()) -> list[NewFile]:
    """Return the files of every new project.

    Args:
        template: folder with the files of this repository.
        model: name of its model.
        extras: extras of marsmith that its recipe needs, besides ``all``.
        packages: further packages.
    """
    copied = [NewFile(place, template / place) for place in _copied(template)]
    adapted = [
        NewFile(place, (template / name).read_text(encoding="utf-8").replace(DEFAULT_MODEL, model))
        for name, place in _RENAMED.items()
    ]
    made = [NewFile("requirements.txt", _requirements(extras, packages))]
    if _PLAIN_PATH.fullmatch(sys.executable):
        made.append(NewFile("local.mk", _local_settings()))
    return [*copied, *adapted, *made]


def default_model_files(template: Path) -> list[NewFile]:
    """Return the spec, the lock and the recipe of the default model."""
    places = (f"{_SPECS}/{DEFAULT_MODEL}.yaml", f"{_SPECS}/{DEFAULT_MODEL}.lock", f"{RECIPES}/{DEFAULT_MODEL}.py")
    return [NewFile(place, template / place) for place in places]


def _copied(template: Path) -> Iterator[str]:
    for name in _COPIED:
        path = template / name
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for file in files:
            place = file.relative_to(template)
            if "__pycache__" not in place.parts and not place.is_relative_to(_SPECS):
                yield place.as_posix()


def _requirements(extras: Sequence[str], packages: Sequence[str]) -> str:
    others = "".join(f"{name}=={installed_version(name)}\n" for name in packages)
    return (
        "# What this project needs. `make setup` installs it into .venv if there is no local.mk.\n"
        f"marsmith[{','.join(['all', *extras])}]=={__version__}\n{others}"
    )


def _local_settings() -> str:
    # Not resolved: Python finds its virtual environment by the path with which it is called.
    python = os.path.abspath(sys.executable)  # noqa: PTH100
    comment = "# The Python that `marsmith new` ran in, on this machine. Without this file, make uses .venv."
    return f"{comment}\nPYTHON := {python}\n"
