"""Modules of a project, found before what is installed, without standing in the way of anything that torch imports.

A folder at the front of ``sys.path`` would do more: a file of the project called ``queue.py`` would take the place of
the standard library's, and a folder of photos called ``datasets`` that of the package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from marsmith.runtime.imports import is_reserved

_NEVER_LOCAL = frozenset({"marsmith", "torchvision"})


class _ProjectFinder(MetaPathFinder):
    """Finds top-level modules in folders.

    Attributes:
        folders: where it looks.
        namespaces: whether it finds folders without ``__init__.py``, and only them.
        found: the names that it has found.
    """

    def __init__(self, folders: Sequence[Path], *, namespaces: bool) -> None:
        self.folders = [str(folder.absolute()) for folder in folders]
        self.namespaces = namespaces
        self.found: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a top-level module lies in the folders; None for one that is not the project's."""
        if path is not None or is_reserved(name) or name in _NEVER_LOCAL:
            return None
        spec = PathFinder.find_spec(name, self.folders, target)
        if spec is None or (spec.origin is None) != self.namespaces:
            return None
        self.found.add(name)
        return spec


def find_in(folders: Sequence[Path]) -> None:
    """Let imports find the modules in ``folders``, from now on, also those inside functions.

    A folder without ``__init__.py`` counts only where nothing else has its name. What was imported from the folders of
    an earlier call is forgotten: two recipes may have a module of one name each.
    """
    for finder in [one for one in sys.meta_path if isinstance(one, _ProjectFinder)]:
        sys.meta_path.remove(finder)
        for module in list(sys.modules):
            if module.partition(".")[0] in finder.found:
                del sys.modules[module]
    sys.meta_path.insert(0, _ProjectFinder(folders, namespaces=False))
    sys.meta_path.append(_ProjectFinder(folders, namespaces=True))
