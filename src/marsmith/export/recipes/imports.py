"""Imports of a recipe besides its local files. Recipes run only here, so no server needs these modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from marsmith import files
from marsmith.archive.environment import normalise
from marsmith.errors import ExportError
from marsmith.packages import install_tip, lies_in_project, module_origin
from marsmith.runtime.import_statements import ImportStatement
from marsmith.runtime.imports import foreign_imports, provided

# Its own code is always an input of an export.
_OURS = "marsmith"


@dataclass(frozen=True)
class Requirements:
    """Requirements of a recipe.

    Attributes:
        distributions: normalised names (PEP 503) of the installed distributions that it imports, sorted.
        loose: modules on PYTHONPATH without a distribution, with the SHA-256 of each of their files.
    """

    distributions: tuple[str, ...]
    loose: dict[str, dict[str, str]]


def requirements(files: Sequence[Path], root: Path) -> Requirements:
    """Return the requirements of the files of a recipe; the recipe's own file comes first.

    Raises:
        ExportError: a required module is neither in the project nor installed. The message names every such place.
        HandlerError: a file cannot be read or parsed.
    """
    names: set[str] = set()
    loose: dict[str, dict[str, str]] = {}
    missing: dict[str, ImportStatement] = {}
    roots = (files[0].parent, root) if files else ()
    for statement, found in provided(foreign_imports(list(files), roots)):
        names |= found
        if found or statement.top == _OURS:
            continue
        origin = module_origin(statement.top)
        if origin:
            loose[statement.top] = _digests(Path(origin))
        elif not statement.optional:
            missing.setdefault(statement.top, statement)
    if missing:
        places = [f"{one.file}:{one.line}: the module {name!r} is not installed" for name, one in missing.items()]
        tips = [fix_missing_in_recipe(name, one.file) for name, one in missing.items()]
        raise ExportError("\n".join(places), tip="; ".join(tips))
    return Requirements(tuple(sorted({*map(normalise, names)} - {_OURS})), loose)


def fix_missing_in_recipe(module: str, file: Path) -> str:
    """Return what to do about a missing module that a file of a recipe imports."""
    elsewhere = lies_in_project(module, file)
    if elsewhere:
        return f"a recipe finds what lies beside it or in the project's root: {elsewhere} is in neither"
    return f"{install_tip(module)}, or put {module}.py beside the recipe or into the project's root"


def _digests(origin: Path) -> dict[str, str]:
    """Return the digests of a module's source, by path from its folder."""
    folder = origin.parent if origin.name == "__init__.py" else origin
    modules = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
    return {file.relative_to(folder.parent).as_posix(): files.sha256(file) for file in modules if file.is_file()}
