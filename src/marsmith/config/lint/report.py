"""What lint found, printed: for people, for code hosts, for programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from marsmith import __version__
from marsmith.config.lint.findings import Finding
from marsmith.config.lint.github_annotation import render_annotation
from marsmith.config.lint.rules import RULES, Found
from marsmith.config.lint.sarif import SarifResult, SarifRule, render_sarif


def as_text(results: Sequence[Found], base: Path) -> str:
    """Print each finding with its mend, then their number; files are named as seen from ``base``."""
    lines = []
    for item in results:
        finding = item.finding
        place = f"{_name(finding.file, base)}:{finding.line}"
        lines.append(f"{place}: {finding.severity}: {finding.message} [{finding.rule}]")
        lines.append(f"    why: {RULES[finding.rule].reason}")
        lines.append(f"    mend: {finding.mend}{' (--fix)' if item.fix else ''}")
    return "\n".join([*lines, _summary(results)]) + "\n"


def as_github(results: Iterable[Found], base: Path) -> str:
    """Print the findings as annotations of a GitHub workflow."""
    return "".join(_annotation(item.finding, base) for item in results)


def as_sarif(results: Iterable[Found], base: Path) -> str:
    """Print the findings, and all rules, as SARIF."""
    rules = [SarifRule(key, rule.name, rule.reason, rule.severity) for key, rule in RULES.items()]
    return render_sarif("marsmith", __version__, rules, [_sarif(item.finding, base) for item in results])


def as_data(results: Iterable[Found], base: Path) -> dict[str, Any]:
    """Return the findings as plain data for JSON."""
    listed = list(results)
    return {
        "ok": not has_errors(listed),
        "findings": [
            {
                "rule": item.finding.rule,
                "severity": item.finding.severity,
                "file": _name(item.finding.file, base),
                "line": item.finding.line,
                "message": item.finding.message,
                "reason": RULES[item.finding.rule].reason,
                "mend": item.finding.mend,
                "fixable": item.fix is not None,
            }
            for item in listed
        ],
    }


def has_errors(results: Iterable[Found]) -> bool:
    """Tell whether there is a finding that is an error."""
    return any(item.finding.severity == "error" for item in results)


def _summary(results: Sequence[Found]) -> str:
    counts = Counter(item.finding.severity for item in results)
    words = [f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}" for kind in ("error", "warning", "note")]
    return ", ".join(word for word in words if not word.startswith("0 ")) or "nothing found"


def _annotation(finding: Finding, base: Path) -> str:
    message = f"{finding.message}\nmend: {finding.mend}"
    title = f"{finding.rule} {RULES[finding.rule].name}"
    return render_annotation(finding.severity, _name(finding.file, base), finding.line, title, message)


def _sarif(finding: Finding, base: Path) -> SarifResult:
    text = f"{finding.message}; mend: {finding.mend}"
    uri = quote(Path(_name(finding.file, base)).as_posix())
    return SarifResult(finding.rule, finding.severity, text, uri, finding.line)


def _name(file: Path, base: Path) -> str:
    name = os.path.relpath(file.absolute(), base.resolve())
    return str(file) if name.startswith("..") else name
