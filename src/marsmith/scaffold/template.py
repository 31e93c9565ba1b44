"""The files of this repository that a new project gets, and what stands in them for its own model.

In a checkout they are read from where they lie; in an installed wheel from its copy of them (pyproject.toml,
force-include), which has the same names.
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
# Where a recipe that `marsmith new` writes goes, and the weights that it is made for.
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
# The specs of this repository's own models are not those of a new project.
_SPECS = Path("config/models")
_RENAMED = {"tools/new_project/Makefile": "Makefile", "tools/new_project/test_model.py": "tests/test_model.py"}
# What make takes as it stands within double quotes; a path that has more is not written down.
_PLAIN_PATH = re.compile(r"[\w./ +@:,~=-]+")


@dataclass(frozen=True)
class NewFile:
    """One file of a new project.

    Attributes:
        place: its path from the project's root.
        content: its bytes, its text, or the file that it is a copy of.
    """

    place: str
    content: bytes | str | Path


def common_files(template: Path, model: str, extras: Sequence[str], packages: Sequence[str] = ()) -> list[NewFile]:
    """Return the files that every new project has.

    Args:
        template: the folder with the files of this repository.
        model: the name of its model.
        extras: of marsmith, besides ``all``, that its recipe needs.
        packages: other packages that it needs.
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
    # Not resolved: a virtual environment is known by the name that its Python is called by.
    python = os.path.abspath(sys.executable)  # noqa: PTH100
    comment = "# The Python that `marsmith new` ran in, on this machine. Without this file, make uses .venv."
    return f"{comment}\nPYTHON := {python}\n"
