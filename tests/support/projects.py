"""This repository, and copies of what a user would clone of it."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from marsmith.project import Project

REPOSITORY = Path(__file__).resolve().parents[2]


def copy_project(root: Path) -> Project:
    """Copy what a user would clone, as far as building needs it, into ``root``."""
    for folder in ("export", "handlers", "config"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "config.properties", root)
    # Several servers run at once.
    settings = root / "config" / "marsmith.yaml"
    settings.write_text(settings.read_text().replace("listener: 127.0.0.1:8083", "listener: 127.0.0.1:0"))
    (root / "model_store").mkdir()
    return Project(root.resolve())


def skip_without_locked_torch(what: str) -> None:
    """Skip a test of what holds for the torch of requirements.txt only; `make test-lowest` has another one."""
    if f"torch=={version('torch')} " not in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8"):
        pytest.skip(f"{what} holds for the torch of requirements.txt only")
