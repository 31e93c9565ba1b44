"""``MAR-INF/examples/``: requests with their validated replies, replayed wherever the archive is loaded.

``examples.json`` lists them; each input lies beside it as a file. A reply that is JSON is compared value by value,
numbers within the tolerance; any other reply byte by byte, against its SHA-256.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from marsmith.errors import FormatError

FOLDER = "MAR-INF/examples"
FILE_NAME = f"{FOLDER}/examples.json"


@dataclass(frozen=True)
class ValidatedExample:
    """One request and the reply that it must get.

    Attributes:
        input: name of the file in ``MAR-INF/examples/`` that is the request's body.
        content_type: of the request.
        status: HTTP status of the reply.
        reply: the reply, where it is JSON; None otherwise.
        reply_sha256: digest of the reply's bytes, where it is not JSON; None otherwise.
        tolerance: largest absolute difference allowed for any number in the reply.
    """

    input: str
    content_type: str
    status: int
    reply: Any
    reply_sha256: str | None
    tolerance: float


def render_examples(examples: Sequence[ValidatedExample]) -> str:
    """Print ``examples.json``."""
    return json.dumps([vars(example) for example in examples], indent=2, ensure_ascii=False) + "\n"


def parse_examples(text: str, source: str = FILE_NAME) -> list[ValidatedExample]:
    """Parse ``examples.json``.

    Raises:
        FormatError: not JSON, or not a list of examples.
    """
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(source, [f"not JSON: {error}"]) from None
    if not isinstance(items, list):
        raise FormatError(source, ["expected a list of examples"])
    problems = [problem for i, item in enumerate(items) for problem in _problems(item, f"[{i}]")]
    if problems:
        raise FormatError(source, problems)
    return [ValidatedExample(**item) for item in items]


_KINDS: dict[str, tuple[type, ...]] = {
    "input": (str,),
    "content_type": (str,),
    "status": (int,),
    "reply": (object,),
    "reply_sha256": (str, type(None)),
    "tolerance": (int, float),
}


def _problems(item: Any, place: str) -> list[str]:
    """Say what keeps one entry from being an example."""
    if not isinstance(item, dict):
        return [f"{place}: expected a mapping"]
    wrong = [f"{place}: unknown key {key!r}" for key in sorted(item.keys() - _KINDS.keys())]
    wrong += [f"{place}: missing key {key!r}" for key in sorted(_KINDS.keys() - item.keys())]
    known = [key for key in _KINDS if key in item]
    wrong += [f"{place}: {key} is {item[key]!r}" for key in known if not isinstance(item[key], _KINDS[key])]
    if isinstance(item.get("input"), str) and ("/" in item["input"] or item["input"] in {"", ".", ".."}):
        wrong.append(f"{place}: input {item['input']!r} is not a file name")
    return wrong


def difference(expected: Any, actual: Any, tolerance: float, path: str = "reply") -> str | None:
    """Return the first place where two JSON values differ, in words; None where they agree within ``tolerance``."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return None if expected is actual else f"{path}: {actual!r} instead of {expected!r}"
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        near = math.isclose(expected, actual, rel_tol=0, abs_tol=tolerance)
        return None if near else f"{path}: {actual!r} instead of {expected!r} (tolerance {tolerance:g})"
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _dict_difference(expected, actual, tolerance, path)
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{path}: {len(actual)} items instead of {len(expected)}"
        found = (
            difference(e, a, tolerance, f"{path}[{i}]") for i, (e, a) in enumerate(zip(expected, actual, strict=True))
        )
        return next((text for text in found if text), None)
    return None if expected == actual else f"{path}: {actual!r} instead of {expected!r}"


def _dict_difference(expected: dict[str, Any], actual: dict[str, Any], tolerance: float, path: str) -> str | None:
    """Compare two mappings; the order of their keys carries no meaning in JSON."""
    missing, added = expected.keys() - actual.keys(), actual.keys() - expected.keys()
    if (missing or added) and not _are_best_few(expected, actual):
        parts = [f"lacks {sorted(missing)}" if missing else "", f"has unexpected {sorted(added)}" if added else ""]
        return f"{path} {' and '.join(part for part in parts if part)}"
    if missing or added:
        expected, actual = _with_lowest(expected, actual), _with_lowest(actual, expected)
    found = (difference(expected[key], actual[key], tolerance, f"{path}[{key!r}]") for key in expected)
    return next((text for text in found if text), None)


def _are_best_few(expected: dict[str, Any], actual: dict[str, Any]) -> bool:
    """Tell whether these may be the best few of many classes, of which the best is the same class.

    On another processor an int8 model may swap the last of the few for the next one.
    """
    flat = all(
        reply and all(isinstance(value, int | float) and not isinstance(value, bool) for value in reply.values())
        for reply in (expected, actual)
    )
    if not flat:
        return False
    return (
        max(expected, key=lambda key: expected[key]) in actual and max(actual, key=lambda key: actual[key]) in expected
    )


def _with_lowest(reply: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add what ``other`` has more, with the most that it can be here: the lowest number that the reply tells."""
    lowest = min(reply.values())
    return {**{key: min(lowest, other[key]) for key in other.keys() - reply.keys()}, **reply}
