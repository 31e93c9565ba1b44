"""``MAR-INF/examples/``: requests replayed at load, and their replies compared with the validated ones.

A version whose answers differ from the validated ones must not take traffic.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marsmith_handler.answers import Facts, Judgement, judge

FOLDER = "MAR-INF/examples"
logger = logging.getLogger(__name__)
Handle = Callable[[list[dict[str, Any]], Any], list[Any]]


@dataclass(frozen=True)
class Example:
    """A request with its validated reply: JSON, or a digest and possibly the bytes (``recorded``)."""

    name: str
    body: bytes
    content_type: str
    status: int
    reply: Any
    reply_sha256: str | None
    tolerance: float
    recorded: bytes | None = None

    def row(self) -> dict[str, Any]:
        """Return the request as TorchServe passes it to our handlers; see ``worker_messages.take_bytes``."""
        return {"body": bytearray(self.body)}

    def headers(self) -> dict[str, Any]:
        """Return the request's headers as TorchServe passes them."""
        return {"body": {"content-type": self.content_type}}


@dataclass(frozen=True)
class Replay:
    """Result of a replay.

    Attributes:
        examples: number of examples that were sent.
        problems: which replies differ, and where.
        unproved: which replies could not be compared, and why.
    """

    examples: int
    problems: tuple[str, ...]
    unproved: tuple[str, ...]


@dataclass
class ReplayContext:
    """The part of TorchServe's context that a handler uses while it answers a batch of examples."""

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
        """Accept a content type; it is not compared."""


def read_examples(folder: Path) -> list[Example]:
    """Read the examples of an unpacked archive; empty if it has none."""
    file = folder / FOLDER / "examples.json"
    if not file.is_file():
        return []
    return [_read_example(folder, entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def replay(
    handle: Handle, examples: Sequence[Example], batch_size: int, settings: Mapping[str, Any], facts: Facts
) -> Replay:
    """Send every example alone, and all in batches of ``batch_size``; judge the replies.

    Args:
        handle: the handler's method.
        examples: examples to send.
        batch_size: largest batch.
        settings: the block ``handler`` of model-config.yaml.
        facts: returns engine and precision of this worker; see ``answers.judge``.
    """
    batches: list[list[Example]] = [[example] for example in examples]
    if batch_size > 1 and examples:
        count = max(batch_size, len(examples))
        filled = [examples[i % len(examples)] for i in range(count)]
        batches += [filled[start : start + batch_size] for start in range(0, count, batch_size)]
    found = [pair for batch in batches for pair in _judged(handle, batch, settings, facts)]
    problems = (f"{where}: {one.problem}" for where, one in found if one.problem)
    unproved = (f"{where}: {one.unproved}" for where, one in found if one.unproved)
    return Replay(len(examples), tuple(dict.fromkeys(problems)), tuple(dict.fromkeys(unproved)))


def prove_answers(handle: Handle, folder: Path, batch_size: int, settings: Mapping[str, Any], facts: Facts) -> Replay:
    """Refuse an archive whose answers to its examples differ from the validated ones; see ``replay``.

    Raises:
        RuntimeError: with every example that differs.
    """
    done = replay(handle, read_examples(folder), batch_size, settings, facts)
    if done.problems:
        raise RuntimeError("the archive answers differently from when it was validated: " + "; ".join(done.problems))
    for text in done.unproved:
        logger.warning("an answer is unproved: %s", text)
    return done


def _judged(
    handle: Handle, batch: list[Example], settings: Mapping[str, Any], facts: Facts
) -> list[tuple[str, Judgement]]:
    context = ReplayContext(batch)
    replies = handle([example.row() for example in batch], context)
    where = "alone" if len(batch) == 1 else f"in a batch of {len(batch)}"
    return [
        (
            f"example {example.name!r} {where}",
            judge(example, context.statuses.get(i, 200), replies[i], settings, facts),
        )
        for i, example in enumerate(batch)
    ]


def _read_example(folder: Path, entry: Mapping[str, Any]) -> Example:
    recorded = entry.get("reply_file")
    return Example(
        name=entry["input"],
        body=(folder / FOLDER / entry["input"]).read_bytes(),
        content_type=entry.get("content_type") or "",
        status=entry.get("status", 200),
        reply=entry.get("reply"),
        reply_sha256=entry.get("reply_sha256"),
        tolerance=float(entry.get("tolerance", 0.0)),
        recorded=(folder / FOLDER / recorded).read_bytes() if recorded else None,
    )
