"""Handlers without marsmith, and nothing heavy in the light core; import-linter holds the layers of the packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import marsmith
from support.projects import REPOSITORY


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "handlers").rglob("*.py")), ids=lambda path: path.name)
def test_handlers_never_import_marsmith(path: Path) -> None:
    assert not any(name.split(".")[0] == "marsmith" for name in _imports(path))


def test_what_workers_and_marsmith_both_need_is_one_file() -> None:
    library, source = REPOSITORY / "handlers" / "marsmith_handler", REPOSITORY / "src"
    links = {path.resolve() for path in source.rglob("*.py") if path.is_symlink()}
    assert links == {library / name for name in ("answers.py", "error_text.py", "graph_checks.py")}
    files = [path.read_bytes() for path in (*library.rglob("*.py"), *source.rglob("*.py")) if not path.is_symlink()]
    filled = [content for content in files if content]
    assert len(filled) == len(set(filled))


def test_every_public_name_exists_and_importing_the_package_imports_no_torch() -> None:
    assert all(getattr(marsmith, name) is not None for name in marsmith.__all__)
    probe = "import sys, marsmith; assert 'torch' not in sys.modules and 'requests' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)
