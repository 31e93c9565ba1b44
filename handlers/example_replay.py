"""``MAR-INF/examples/``: requests replayed at load, and their replies compared with the validated ones.

A version that answers differently from when it was validated must not take traffic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replies import JSON_TYPE

FOLDER = "MAR-INF/examples"
Handle = Callable[[list[dict[str, Any]], Any], list[Any]]


@dataclass(frozen=True)
class Example:
    """A request with the reply that was validated: as JSON, or by its digest."""

    name: str
    body: bytes
    content_type: str
    status: int
    reply: Any
    reply_sha256: str | None
    tolerance: float

    def row(self) -> dict[str, Any]:
        """Return the request as TorchServe hands it over: JSON and text decoded, anything else as a bytearray."""
        if self.content_type == JSON_TYPE:
            return {"body": json.loads(self.body)}
        if self.content_type.startswith("text"):
            return {"body": self.body.decode("utf-8")}
        return {"body": bytearray(self.body)}

    def headers(self) -> dict[str, Any]:
        """Return the request's headers as TorchServe hands them over."""
        return {"body": {"content-type": self.content_type}}


@dataclass
class ReplayContext:
    """What a handler asks of TorchServe's context while it answers a batch of examples."""

    examples: Sequence[Example]
    statuses: dict[int, int] = field(default_factory=dict)
    metrics: None = None

    def get_request_id(self, idx: int = 0) -> str:
        """Return a name for a request of the batch."""
        return f"example-{self.examples[idx].name}"

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """Return the headers of a request of the batch."""
        return self.examples[idx].headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:  # noqa: ARG002
        """Note the status of a reply."""
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Take a content type, which is not compared."""


def read_examples(folder: Path) -> list[Example]:
    """Read the examples of an unpacked archive; empty where it has none."""
    file = folder / FOLDER / "examples.json"
    if not file.is_file():
        return []
    return [_read_example(folder, entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def replay_problems(
    handle: Handle, examples: Sequence[Example], batch_size: int, loose: float | None = None
) -> list[str]:
    """Send every example alone, and all in batches of ``batch_size``; say which replies differ, and by how much.

    Args:
        handle: the handler's own.
        examples: what to send.
        batch_size: largest batch.
        loose: where another engine answers than the validated one: what numbers may differ by at least, see
            ``loose_difference``; None: replies must be as the examples say.
    """
    batches: list[list[Example]] = [[example] for example in examples]
    if batch_size > 1 and examples:
        count = max(batch_size, len(examples))
        filled = [examples[i % len(examples)] for i in range(count)]
        batches += [filled[start : start + batch_size] for start in range(0, count, batch_size)]
    found = (problem for batch in batches for problem in _batch_problems(handle, batch, loose))
    return list(dict.fromkeys(found))


def prove_answers(handle: Handle, folder: Path, batch_size: int, loose: float | None = None) -> int:
    """Refuse an archive that answers its examples differently from when it was validated; return how many it has.

    See ``replay_problems``.

    Raises:
        RuntimeError: with every example that differs.
    """
    examples = read_examples(folder)
    problems = replay_problems(handle, examples, batch_size, loose)
    if problems:
        raise RuntimeError("the archive answers differently from when it was validated: " + "; ".join(problems))
    return len(examples)


def largest_difference(expected: Any, actual: Any, path: str = "reply") -> tuple[float, str]:
    """Return the largest difference between two JSON values, and where it is; infinite where their form differs."""
    if _is_number(expected) and _is_number(actual):
        return abs(expected - actual), f"{path} is {actual!r} instead of {expected!r}"
    if isinstance(expected, Mapping) and isinstance(actual, Mapping):
        if expected.keys() != actual.keys():
            missing, added = sorted(expected.keys() - actual.keys()), sorted(actual.keys() - expected.keys())
            return float("inf"), f"{path} lacks {missing} and has {added} instead"
        pairs = [(expected[key], actual[key], f"{path}[{key!r}]") for key in expected]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return float("inf"), f"{path} has {len(actual)} elements instead of {len(expected)}"
        pairs = [(e, a, f"{path}[{i}]") for i, (e, a) in enumerate(zip(expected, actual, strict=True))]
    else:
        same = type(expected) is type(actual) and expected == actual
        return 0.0 if same else float("inf"), f"{path} is {actual!r} instead of {expected!r}"
    return max((largest_difference(*pair) for pair in pairs), default=(0.0, path), key=lambda found: found[0])


def loose_difference(expected: Any, actual: Any) -> tuple[float, str]:
    """Return the largest difference between replies of two engines, and where it is.

    The best few of many classes need not be the same few: a label that one reply lacks has a number there too, at most
    the lowest that the reply tells, and differs by what is between. The best label of either must be in both.
    """
    if not (_is_flat(expected) and _is_flat(actual)):
        return largest_difference(expected, actual)
    if (
        max(expected, key=lambda key: expected[key]) not in actual
        or max(actual, key=lambda key: actual[key]) not in expected
    ):
        return largest_difference(expected, actual)
    floors = (min(expected.values()), min(actual.values()))
    found = [(0.0, "reply")]
    for key in sorted(expected.keys() | actual.keys()):
        one = expected.get(key, min(floors[0], actual.get(key, 0.0)))
        other = actual.get(key, min(floors[1], one))
        found.append((abs(one - other), f"reply[{key!r}] is {other!r} instead of {one!r}"))
    return max(found)


def _batch_problems(handle: Handle, batch: list[Example], loose: float | None) -> list[str]:
    context = ReplayContext(batch)
    replies = handle([example.row() for example in batch], context)
    where = "alone" if len(batch) == 1 else f"in a batch of {len(batch)}"
    found = [
        (example, _difference(example, context.statuses.get(i, 200), replies[i], loose))
        for i, example in enumerate(batch)
    ]
    return [f"example {example.name!r} {where}: {difference}" for example, difference in found if difference]


def _difference(example: Example, status: int, reply: bytes, loose: float | None) -> str | None:
    if status != example.status:
        return f"status {status} instead of {example.status}: {reply[:200].decode('utf-8', 'replace')}"
    if example.reply_sha256 is not None:
        # Bytes of another engine are others; of how much they differ a digest tells nothing.
        same = loose is not None or hashlib.sha256(reply).hexdigest() == example.reply_sha256
        return None if same else f"the reply's {len(reply)} bytes are not those that were validated"
    compare = largest_difference if loose is None else loose_difference
    tolerance = max(example.tolerance, loose or 0.0)
    amount, place = compare(example.reply, json.loads(reply))
    return None if amount <= tolerance else f"{place}, off by {amount:.3g} (tolerance {tolerance:g})"


def _read_example(folder: Path, entry: Mapping[str, Any]) -> Example:
    return Example(
        name=entry["input"],
        body=(folder / FOLDER / entry["input"]).read_bytes(),
        content_type=entry.get("content_type") or "",
        status=entry.get("status", 200),
        reply=entry.get("reply"),
        reply_sha256=entry.get("reply_sha256"),
        tolerance=float(entry.get("tolerance", 0.0)),
    )


def _best(reply: Mapping[str, float]) -> str:
    return max(reply, key=lambda key: reply[key])


def _is_flat(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(_is_number(number) for number in value.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
