"""Every test is run: pytest leaves out some folders by their names alone."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from support.projects import REPOSITORY


def test_no_folder_with_tests_has_a_name_that_pytest_leaves_out(pytestconfig: pytest.Config) -> None:
    files = (REPOSITORY / "tests").rglob("test_*.py")
    folders = {parent.name for file in files for parent in file.relative_to(REPOSITORY).parents}
    assert "build" in folders
    assert [
        name for name in folders for left_out in pytestconfig.getini("norecursedirs") if fnmatch(name, left_out)
    ] == []
