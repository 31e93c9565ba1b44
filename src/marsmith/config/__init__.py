"""What users write down about their project, their models and their server: parsed, checked, explained."""

from __future__ import annotations

from marsmith.config.project_settings import ProjectSettings, admission_policy, load_settings

__all__ = ["ProjectSettings", "admission_policy", "load_settings"]
