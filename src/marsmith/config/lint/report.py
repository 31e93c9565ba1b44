"""Output of lint: text, GitHub annotations, SARIF 2.1.0 and JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from marsmith import __version__
from marsmith.config.lint.findings import Finding
from marsmith.config.lint.rules import RULES, LintResult

_LEVELS = {"error": "error", "warning": "warning", "note": "notice"}


def render_annotation(level: str, file: str, line: int, title: str, message: str) -> str:
    """Return one annotation: a line that a GitHub workflow writes to stdout.

    Args:
        level: ``error``, ``warning`` or ``note``.
        file: path relative to the repository's root.
        line: counted from 1.
        title: title above the message.
        message: the text; line breaks are kept.
    """
    where = f"file={_property(file)},line={line},title={_property(title)}"
    return f"::{_LEVELS[level]} {where}::{_data(message)}\n"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
VERSION = "2.1.0"


@dataclass(frozen=True)
class SarifRule:
    """One rule: id, short name, reason, and ``error``, ``warning`` or ``note``."""

    id: str
    name: str
    reason: str
    level: str


@dataclass(frozen=True)
class SarifResult:
    """One finding.

    Attributes:
        rule: id of its rule.
        level: ``error``, ``warning`` or ``note``.
        message: what is wrong, and the fix.
        uri: path relative to the repository's root, with ``/``.
        line: counted from 1.
    """

    rule: str
    level: str
    message: str
    uri: str
    line: int


def render_sarif(tool: str, tool_version: str, rules: Iterable[SarifRule], results: Iterable[SarifResult]) -> str:
    """Return one run as SARIF; the output is deterministic."""
    listed = sorted(rules, key=lambda rule: rule.id)
    index = {rule.id: position for position, rule in enumerate(listed)}
    driver = {"name": tool, "version": tool_version, "rules": [_rule(rule) for rule in listed]}
    run = {"tool": {"driver": driver}, "results": [_result(result, index) for result in results]}
    return json.dumps({"$schema": SCHEMA, "version": VERSION, "runs": [run]}, indent=2, ensure_ascii=False) + "\n"


def _rule(rule: SarifRule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.reason},
        "defaultConfiguration": {"level": rule.level},
    }


def _result(result: SarifResult, index: Mapping[str, int]) -> dict[str, Any]:
    place = {"artifactLocation": {"uri": result.uri}, "region": {"startLine": result.line}}
    return {
        "ruleId": result.rule,
        "ruleIndex": index[result.rule],
        "level": result.level,
        "message": {"text": result.message},
        "locations": [{"physicalLocation": place}],
    }


def as_text(results: Sequence[LintResult], base: Path) -> str:
    """Return each finding with its fix, then the counts; paths are relative to ``base``."""
    lines = []
    for item in results:
        finding = item.finding
        place = f"{_name(finding.file, base)}:{finding.line}"
        lines.append(f"{place}: {finding.severity}: {finding.message} [{finding.rule}]")
        lines.append(f"    why: {RULES[finding.rule].reason}")
        lines.append(f"    fix: {finding.fix}{' (--fix)' if item.edit else ''}")
    return "\n".join([*lines, _summary(results)]) + "\n"


def as_github(results: Iterable[LintResult], base: Path) -> str:
    """Return the findings as annotations of a GitHub workflow."""
    return "".join(_annotation(item.finding, base) for item in results)


def as_sarif(results: Iterable[LintResult], base: Path) -> str:
    """Return the findings and all rules as SARIF."""
    rules = [SarifRule(key, rule.name, rule.reason, rule.severity) for key, rule in RULES.items()]
    return render_sarif("marsmith", __version__, rules, [_sarif(item.finding, base) for item in results])


def as_data(results: Iterable[LintResult], base: Path) -> dict[str, Any]:
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
                "fix": item.finding.fix,
                "fixable": item.edit is not None,
            }
            for item in listed
        ],
    }


def has_errors(results: Iterable[LintResult]) -> bool:
    """Return whether a finding is an error."""
    return any(item.finding.severity == "error" for item in results)


def _summary(results: Sequence[LintResult]) -> str:
    counts = Counter(item.finding.severity for item in results)
    words = [f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}" for kind in ("error", "warning", "note")]
    return ", ".join(word for word in words if not word.startswith("0 ")) or "nothing found"


def _annotation(finding: Finding, base: Path) -> str:
    message = f"{finding.message}\nfix: {finding.fix}"
    title = f"{finding.rule} {RULES[finding.rule].name}"
    return render_annotation(finding.severity, _name(finding.file, base), finding.line, title, message)


def _sarif(finding: Finding, base: Path) -> SarifResult:
    text = f"{finding.message}; fix: {finding.fix}"
    uri = quote(Path(_name(finding.file, base)).as_posix())
    return SarifResult(finding.rule, finding.severity, text, uri, finding.line)


def _name(file: Path, base: Path) -> str:
    name = os.path.relpath(file.absolute(), base.resolve())
    return str(file) if name.startswith("..") else name
