"""Which installed distribution provides a module, and what its metadata says."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution, as its metadata gives it; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Providers:
    """The distributions of this Python, by the top-level modules that they provide.

    Attributes:
        by_module: for each top-level name, the distributions that provide it or parts of it.
    """

    by_module: Mapping[str, tuple[metadata.Distribution, ...]]

    @classmethod
    def installed(cls) -> Providers:
        """Read what is installed in the Python that runs marsmith."""
        found: dict[str, dict[str, metadata.Distribution]] = defaultdict(dict)
        for distribution in metadata.distributions():
            for module in _top_level(distribution):
                # The first of a name on sys.path is the one that is imported.
                found[module].setdefault(distribution.metadata["Name"], distribution)
        return cls({module: tuple(owners.values()) for module, owners in found.items()})

    def of(self, dotted: str) -> list[str]:
        """Return the distributions that provide a module, by its dotted name; none where nothing installed does.

        Of several that share a top-level name, as ``google`` is shared, those with the longest part of the dotted name.
        """
        top = dotted.partition(".")[0]
        owners = self.by_module.get(top, ())
        if len(owners) > 1:
            depths = [_matching_parts(owner, dotted) for owner in owners]
            owners = tuple(owner for owner, depth in zip(owners, depths, strict=True) if depth == max(depths))
        return [owner.metadata["Name"] for owner in owners] or _editable_owner(top)


def _top_level(distribution: metadata.Distribution) -> set[str]:
    declared = distribution.read_text("top_level.txt")
    if declared:
        return set(declared.split())
    return {
        file.parts[0].partition(".")[0]
        for file in distribution.files or ()
        if file.suffix in {".py", ".so", ".pyd"} and ".." not in file.parts
    }


def _matching_parts(distribution: metadata.Distribution, dotted: str) -> int:
    """Return how many parts of a dotted name are files or folders of the distribution."""
    parts = tuple(dotted.split("."))
    best = 0
    for file in distribution.files or ():
        names = (*file.parts[:-1], file.name.partition(".")[0])
        same = next(
            (i for i, (a, b) in enumerate(zip(names, parts, strict=False)) if a != b), min(len(names), len(parts))
        )
        best = max(best, same)
    return best


def module_origin(name: str) -> str | None:
    """Return where a top-level module would be loaded from, without loading it; None where it is not found."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _editable_owner(name: str) -> list[str]:
    """Return the distribution installed with ``pip install --editable`` whose folder holds the module."""
    origin = module_origin(name)
    if origin is None:
        return []
    for distribution in metadata.distributions():
        direct = json.loads(distribution.read_text("direct_url.json") or "{}")
        folder = Path(unquote(urlsplit(direct.get("url", "")).path))
        if direct.get("dir_info", {}).get("editable") and Path(origin).is_relative_to(folder):
            return [distribution.metadata["Name"]]
    return []
