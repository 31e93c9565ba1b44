"""SARIF 2.1.0, which code hosts and editors read: the findings of one run and the rules behind them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
VERSION = "2.1.0"


@dataclass(frozen=True)
class SarifRule:
    """One rule: its id, a word or two, why it exists, and ``error``, ``warning`` or ``note``."""

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
        message: what is wrong, and the mend.
        uri: the file, relative to the repository's root, with ``/``.
        line: counted from 1.
    """

    rule: str
    level: str
    message: str
    uri: str
    line: int


def render_sarif(tool: str, tool_version: str, rules: Iterable[SarifRule], results: Iterable[SarifResult]) -> str:
    """Print one run as SARIF, in the same way each time."""
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
