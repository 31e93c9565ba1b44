"""A state file of each model, in a folder of ``.marsmith``: its path, and the models that have one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from marsmith.names import check_model_name
from marsmith.project import Project


@dataclass(frozen=True)
class ModelFile:
    """The state file of one model.

    Attributes:
        path: ``.marsmith/<folder>/<model>.json`` in the project.
        model: model name.
    """

    FOLDER: ClassVar[str]

    path: Path
    model: str

    @classmethod
    def of(cls, project: Project, model: str) -> Self:
        """Return the file of ``model``, which may not exist yet."""
        return cls(cls._folder(project) / f"{check_model_name(model)}.json", model)

    @classmethod
    def models(cls, project: Project) -> list[str]:
        """Return the models that have such a file, sorted."""
        return sorted(path.stem for path in cls._folder(project).glob("*.json"))

    @classmethod
    def _folder(cls, project: Project) -> Path:
        return project.root / ".marsmith" / cls.FOLDER
