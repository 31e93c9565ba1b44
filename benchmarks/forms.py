"""Archives of one model in given forms, built by marsmith in a project of their own."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marsmith.build import build_from_spec
from marsmith.config import load_spec
from marsmith.project import Project

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Project(REPOSITORY)


def scratch_project(folder: Path) -> Project:
    """Make a project that is a copy of this one, and whose products stay in ``folder``."""
    for name in ("export", "handlers", "config"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "config.properties", folder)
    (folder / "model_store").mkdir()
    return Project(folder.resolve())


def build(project: Project, model: str, *, weights: str | None = None, **form: str) -> Path:
    """Build the archive of a model in the form that is named, or as its spec says; return its path."""
    spec = load_spec(project, model)
    if form:
        # It is for the form that the spec names.
        (project.specs / f"{model}.lock").unlink(missing_ok=True)
        changed: Mapping[str, Any] = {**spec.export.model_dump(), **form}
        version = f"{spec.version}-{'-'.join(form.values())}"
        data = {**spec.model_dump(by_alias=True), "export": changed, "version": version}
        spec = type(spec).model_validate(data)
    built = build_from_spec(project, spec, weights=weights, on_step=_say)
    return built.path


def _say(step: str) -> None:
    print(step, file=sys.stderr, flush=True)
