"""Find the traps of TorchServe in config files, model specs and archives.

Without a path the whole project is checked. Exits 1 if there is an error.

    marsmith lint
    marsmith lint config.properties model_store/efficientnet_lite0-1.0.mar
    marsmith lint --fix                  # fix what can be fixed safely, then show what is left
    marsmith lint --format github        # annotations in a pull request; also: sarif, json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import add_json_flag, note, print_json, printable_lines
from marsmith.errors import MarsmithError, ProjectError
from marsmith.project import find_project

if TYPE_CHECKING:
    from marsmith.config.lint import LintResult

# A fix may reveal another problem, such as a wrong value after the correct name of its key.
_MOST_PASSES = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="file, archive or folder")
    parser.add_argument("--fix", action="store_true", help="fix what can be fixed safely")
    parser.add_argument("--format", choices=("text", "json", "sarif", "github"), default="text", help="(%(default)s)")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Check, fix if requested, print, and return 1 if there is an error."""
    from marsmith.config.lint.report import has_errors

    results = _lint(args.paths)
    if args.fix:
        results = _fix(results, args.paths)
    _print(results, "json" if args.json else args.format)
    return int(has_errors(results))


def _lint(paths: list[Path]) -> list[LintResult]:
    from marsmith.config.lint import lint_paths, lint_project

    if not paths:
        return lint_project(find_project())
    try:
        root = find_project(paths[0].parent).root
    except ProjectError:
        root = Path.cwd()
    return lint_paths(paths, root)


def _fix(results: list[LintResult], paths: list[Path]) -> list[LintResult]:
    from marsmith.config.lint.run import fix

    fixed = 0
    for _ in range(_MOST_PASSES):
        try:
            count = fix(results)
        except OSError as error:
            raise MarsmithError(f"cannot fix {error.filename}: {error.strerror}") from None
        if not count:
            break
        fixed += count
        results = _lint(paths)
    note(f"fixed {fixed}")
    return results


def _print(results: list[LintResult], form: str) -> None:
    from marsmith.config.lint import report

    base = Path.cwd()
    if form == "json":
        print_json(report.as_data(results, base))
        return
    printers = {"text": report.as_text, "sarif": report.as_sarif, "github": report.as_github}
    text = printers[form](results, base)
    sys.stdout.write(printable_lines(text) if form == "text" else text)
