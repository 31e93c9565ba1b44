"""The direction of imports: down only, and nothing heavy in the light core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import marsmith
from support.projects import REPOSITORY

PACKAGE = REPOSITORY / "src" / "marsmith"
LOWEST = {"errors", "names", "settings", "run_state", "files", "file_errors", "child_guard", "child_processes"} | {
    "installed",
    "json_reader",
    "bounded_yaml",
    "strict_yaml",
}


def _layer(path: Path) -> int:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "cli" or parts == ("__main__",):
        return 3
    if parts[0] == "formats":
        return 1
    return 0 if parts[0] in LOWEST or parts == ("__init__",) else 2


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _module_file(name: str) -> Path | None:
    base = REPOSITORY / "src" / Path(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_only(path: Path) -> None:
    for name in _imports(path):
        target = _module_file(name) if name.startswith("marsmith") else None
        if target and target != path:
            assert _layer(target) <= _layer(path), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "handlers").glob("*.py")), ids=lambda path: path.name)
def test_handlers_never_import_marsmith(path: Path) -> None:
    assert not any(name.split(".")[0] == "marsmith" for name in _imports(path))


def test_every_public_name_exists_and_importing_the_package_imports_no_torch() -> None:
    assert all(getattr(marsmith, name) is not None for name in marsmith.__all__)
    probe = "import sys, marsmith; assert 'torch' not in sys.modules and 'requests' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)
