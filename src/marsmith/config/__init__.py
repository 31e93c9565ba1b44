"""The files that users write about a project, its models and its server: parse, check and explain them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.config.lint.run import lint_project
    from marsmith.config.model_spec import ModelSpec, load_spec
    from marsmith.config.project_settings import ProjectSettings, admission_policy, load_settings

__all__ = ["ModelSpec", "ProjectSettings", "admission_policy", "lint_project", "load_settings", "load_spec"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ModelSpec": "marsmith.config.model_spec",
        "ProjectSettings": "marsmith.config.project_settings",
        "admission_policy": "marsmith.config.project_settings",
        "lint_project": "marsmith.config.lint.run",
        "load_settings": "marsmith.config.project_settings",
        "load_spec": "marsmith.config.model_spec",
    },
)
