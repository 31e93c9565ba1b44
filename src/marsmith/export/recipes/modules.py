"""Modules of a project, found before installed ones, without shadowing any module that torch imports.

A folder at the front of ``sys.path`` would shadow other modules: a file ``queue.py`` of the project would replace the
module of the standard library, and a folder ``datasets`` with photos that of the package.
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
        folders: folders to search.
        namespaces: whether to find only folders without ``__init__.py``.
        found: names that were found.
    """

    def __init__(self, folders: Sequence[Path], *, namespaces: bool) -> None:
        self.folders = [str(folder.absolute()) for folder in folders]
        self.namespaces = namespaces
        self.found: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a top-level module in the folders; None for other modules."""
        if path is not None or is_reserved(name) or name in _NEVER_LOCAL:
            return None
        spec = PathFinder.find_spec(name, self.folders, target)
        if spec is None or (spec.origin is None) != self.namespaces:
            return None
        self.found.add(name)
        return spec


def find_in(folders: Sequence[Path]) -> None:
    """Add ``folders`` to the search for modules, from now on, including imports inside functions.

    A folder without ``__init__.py`` counts only if no other module has its name. Modules from the folders of an earlier
    call are removed, because two recipes may have modules of the same name.
    """
    for finder in [one for one in sys.meta_path if isinstance(one, _ProjectFinder)]:
        sys.meta_path.remove(finder)
        for module in list(sys.modules):
            if module.partition(".")[0] in finder.found:
                del sys.modules[module]
    sys.meta_path.insert(0, _ProjectFinder(folders, namespaces=False))
    sys.meta_path.append(_ProjectFinder(folders, namespaces=True))
