"""Compare the replies of an old and a new archive to the same requests, in TorchServe's own worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.errors import ExportError
from marsmith.json_reader import read_json
from marsmith.runtime.replay import reply_difference
from marsmith.runtime.runner import Request, Runner, RunnerReply


@dataclass(frozen=True)
class Agreement:
    """Comparison of the replies of two archives.

    Attributes:
        requests: number of requests.
        same_top1: number of requests with the same top label.
        largest_difference: largest difference of any number in both replies.
    """

    requests: int
    same_top1: int
    largest_difference: float

    def record(self) -> dict[str, Any]:
        """Return the part of export.json about it."""
        return {
            "requests": self.requests,
            "sameTop1": self.same_top1,
            "largestDifference": float(f"{self.largest_difference:.3g}"),
        }


def ask(runner: Runner, requests: Sequence[Request]) -> list[RunnerReply]:
    """Send requests one by one."""
    return [reply for request in requests for reply in runner.run([request])]


def answers_of(folder: Path, requests: Sequence[Request]) -> list[RunnerReply]:
    """Load an archive and return its replies.

    Raises:
        HandlerError: its handler does not load.
    """
    with Runner(folder, batch_size=1) as runner:
        return ask(runner, requests)


def compare_replies(
    names: Sequence[str], old: Sequence[RunnerReply], new: Sequence[RunnerReply], tolerance: float
) -> Agreement:
    """Compare the replies to the same requests.

    Args:
        names: names of the requests.
        old: replies of the old archive.
        new: replies of the new archive.
        tolerance: maximum difference of two numbers.

    Raises:
        ExportError: a status or the form of a reply differs, or another label is on top by more than the tolerance.
    """
    found = [_compared(*pair, tolerance) for pair in zip(names, old, new, strict=True)]
    return Agreement(len(found), sum(same for same, _ in found), max((far for _, far in found), default=0.0))


def _compared(name: str, old: RunnerReply, new: RunnerReply, tolerance: float) -> tuple[bool, float]:
    """Return whether the same label is on top, and the largest difference."""
    if old.status != new.status:
        raise _unlike(name, f"status {new.status} instead of {old.status}: {_shown(new)}")
    wanted, given = _json(old), _json(new)
    if not (_is_ranking(wanted) and _is_ranking(given)):
        if found := reply_difference(old, new, tolerance):
            raise _unlike(name, found)
        return True, 0.0
    if len(wanted) != len(given):
        raise _unlike(name, f"{len(given)} labels instead of {len(wanted)}")
    if list(given.values()) != sorted(given.values(), reverse=True) and list(wanted.values()) == sorted(
        wanted.values(), reverse=True
    ):
        raise _unlike(name, "the labels are no longer sorted")
    top, before = max(given, key=given.__getitem__), max(wanted, key=wanted.__getitem__)
    # Two nearly equal labels may change places within the tolerance.
    if top != before and wanted[before] - wanted.get(top, -tolerance) > 2 * tolerance:
        raise _unlike(name, f"{top!r} is the top label instead of {before!r}")
    shared = wanted.keys() & given.keys()
    return top == before, max((abs(wanted[key] - given[key]) for key in shared), default=0.0)


def _unlike(name: str, what: str) -> ExportError:
    return ExportError(
        f"for {name} the new archive answers differently from the old one: {what}",
        tip="try --precision float32 --engine torch; if that differs too, the old answers need more than the module",
    )


def _json(reply: RunnerReply) -> Any:
    try:
        return read_json(reply.body)
    except ValueError:
        return None


def _is_ranking(value: Any) -> bool:
    """Return whether a reply is a mapping of labels to numbers."""
    return isinstance(value, dict) and bool(value) and all(isinstance(one, int | float) for one in value.values())


def _shown(reply: RunnerReply) -> str:
    return " ".join(reply.body[:200].decode("utf-8", "replace").split())
