"""`marsmith lint`: the traps of TorchServe that show in the files of a project, before a server falls into them."""

from __future__ import annotations

from marsmith.config.lint.rules import RULES, LintResult, Rule
from marsmith.config.lint.run import lint_paths, lint_project

__all__ = ["RULES", "LintResult", "Rule", "lint_paths", "lint_project"]
