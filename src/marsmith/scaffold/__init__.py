"""A new project, made from the files of this repository and from an existing model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.scaffold.project import NewProject, new_project
    from marsmith.scaffold.sources import ModelSource

__all__ = ["ModelSource", "NewProject", "new_project"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ModelSource": "marsmith.scaffold.sources",
        "NewProject": "marsmith.scaffold.project",
        "new_project": "marsmith.scaffold.project",
    },
)
