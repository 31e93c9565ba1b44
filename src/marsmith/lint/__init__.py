"""`marsmith lint`: the traps of TorchServe that show in the files of a project, before a server falls into them."""

from __future__ import annotations

from marsmith.lint.run import lint_paths, lint_project
from marsmith.lint.trap import RULES, Found, Rule

__all__ = ["RULES", "Found", "Rule", "lint_paths", "lint_project"]
