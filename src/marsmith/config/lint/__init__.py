"""`marsmith lint`: rules for TorchServe's traps in the files of a project."""

from __future__ import annotations

from marsmith.config.lint.rules import RULES, LintResult, Rule
from marsmith.config.lint.run import lint_paths, lint_project

__all__ = ["RULES", "LintResult", "Rule", "lint_paths", "lint_project"]
