"""The drawing of the packages of src/marsmith, from the imports of the code."""

from __future__ import annotations

import textwrap
from importlib import import_module

import grimp

BEGIN = "<!-- drawing: written by `make pages` -->\n"
END = "<!-- end of the drawing -->\n"


def insert(page: str) -> str:
    """Return ``page`` with the drawing between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the design page has no markers for the drawing")
    return f"{before}{BEGIN}\n{drawing()}\n{END}{after}"


def drawing() -> str:
    """Return the packages as a Mermaid graph, and a table that says what each is and imports."""
    graph = grimp.build_graph("marsmith", exclude_type_checking_imports=True, cache_dir=None)
    children = sorted(graph.find_children("marsmith"))
    packages = [child for child in children if graph.find_children(child)]
    imports = {
        package: {
            other
            for other in packages
            if other != package and graph.direct_import_exists(importer=package, imported=other, as_packages=True)
        }
        for package in packages
    }
    order = sorted(packages, key=lambda package: (-len(_reached(package, imports)), package))
    arrows = [f"  {_short(one)} --> {_short(two)}" for one in order for two in _nearest(one, imports)]
    rows = [f"| `{_short(one)}` | {_purpose(one)} | {_named(imports[one])} |" for one in order]
    leaves = [child for child in children if child not in packages and not child.endswith("__main__")]
    return "\n".join(
        [
            "```mermaid",
            "flowchart TD",
            *arrows,
            "```",
            "",
            "| package | what it does | imports |",
            "|---|---|---|",
            *rows,
            "",
            textwrap.fill(f"Modules beside them that any package may import: {_named(set(leaves))}.", 120),
            "",
        ]
    )


def _reached(package: str, imports: dict[str, set[str]]) -> set[str]:
    """Return the packages that ``package`` imports, directly or not."""
    return imports[package].union(*(_reached(other, imports) for other in imports[package]))


def _nearest(package: str, imports: dict[str, set[str]]) -> list[str]:
    """Return the packages that ``package`` imports and that nothing else that it imports leads to."""
    direct = imports[package]
    return sorted(other for other in direct if not any(other in _reached(one, imports) for one in direct - {other}))


def _short(module: str) -> str:
    return module.removeprefix("marsmith.")


def _named(modules: set[str]) -> str:
    return ", ".join(f"`{_short(module)}`" for module in sorted(modules)) or "none"


def _purpose(package: str) -> str:
    """Return the first sentence of a package's docstring."""
    first = (import_module(package).__doc__ or "").replace("``", "`").split("\n\n")[0]
    return " ".join(first.split()).rstrip(".")
