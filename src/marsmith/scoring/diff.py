"""Compare two finished batches input by input: the offline shadow of a new version."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from marsmith.errors import BatchError
from marsmith.predictions import Comparison, Prediction, Report, Tolerance
from marsmith.predictions.compare import top_class
from marsmith.scoring import parts
from marsmith.scoring.destination import Folder, Prefix, open_destination
from marsmith.scoring.items import order_of
from marsmith.scoring.parts import Success
from marsmith.scoring.rows import reply_of
from marsmith.scoring.tables import parquet

_MOST_LARGEST = 20
_LONGEST_ANSWER = 60


@dataclass(frozen=True, order=True)
class LargeDifference:
    """One input whose answers differ much.

    Attributes:
        difference: largest difference of two numbers.
        key: of the input.
        old: the old answer in short.
        new: the new one.
    """

    difference: float
    key: str
    old: str
    new: str


@dataclass(frozen=True)
class BatchDiff:
    """What a comparison of two batches has found.

    Attributes:
        model: name of the newer model.
        report: agreement, flips, failures.
        largest: inputs with the largest differences, largest first.
    """

    model: str
    report: Report
    largest: tuple[LargeDifference, ...]

    def record(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            **self.report.record(),
            "model": self.model,
            "largest_differences": [vars(each) for each in self.largest],
        }


def compare_batches(old: str, new: str, tolerance: Tolerance) -> BatchDiff:
    """Compare the answers of two finished batches to the same keys, in bounded memory.

    Args:
        old: path or URL of a batch's destination.
        new: of the other one.
        tolerance: the largest difference at which two answers agree.

    Raises:
        BatchError: a batch is not finished, its parts have changed, or the batches have no key in common.
        AccessError: one cannot be read.
    """
    places = open_destination(old), open_destination(new)
    ends = [_finished(place) for place in places]
    # Two runs may be of one version.
    names = [f"{place.address} ({end.model})" for place, end in zip(places, ends, strict=True)]
    comparison = Comparison(*names, tolerance=tolerance)
    largest: list[LargeDifference] = []
    streams = [_predictions(place, end, name) for place, end, name in zip(places, ends, names, strict=True)]
    for prediction in heapq.merge(*streams, key=lambda each: order_of(each.key)):
        for pair, difference in comparison.add([prediction]):
            if not math.isnan(difference.largest) and difference.largest > 0:
                found = LargeDifference(
                    difference.largest, pair.new.key, _short(pair.old.reply), _short(pair.new.reply)
                )
                (heapq.heappush if len(largest) < _MOST_LARGEST else heapq.heappushpop)(largest, found)
    model, report = ends[1].model.partition(":")[0], comparison.report()
    if not report.pairs:
        raise BatchError(
            f"{old} and {new} have no key in common",
            tip="name their sources in the same way: the key of a file is its path as it was given",
        )
    return BatchDiff(model, report, tuple(sorted(largest, key=lambda each: (-each.difference, each.key))))


def _finished(place: Folder | Prefix) -> Success:
    try:
        text = place.read(parts.SUCCESS)
    except FileNotFoundError:
        raise BatchError(
            f"{place.address} has no {parts.SUCCESS}: it is not a finished batch", tip="run the batch to its end"
        ) from None
    return parts.parse_success(text.decode("utf-8", "replace"), f"{place.address}/{parts.SUCCESS}")


def _predictions(place: Folder | Prefix, end: Success, name: str) -> Iterator[Prediction]:
    """Yield the rows of a batch in order, as the prediction log would have them."""
    model = end.model.partition(":")[0]
    for part in sorted(end.parts):
        for row in parquet().read_table(BytesIO(_content(place, part, end))).to_pylist():
            yield Prediction(0.0, model, name, row["status"], "", reply_of(row), schema=2, key=row["key"])


def _content(place: Folder | Prefix, part: str, end: Success) -> bytes:
    try:
        content = place.read(part)
    except FileNotFoundError:
        content = b""
    if parts.digest_of(content) != end.parts[part]:
        raise BatchError(
            f"{place.address}/{part} is not the one of {parts.SUCCESS}", tip="run the batch again, elsewhere"
        )
    return content


def _short(reply: Any) -> str:
    """Return an answer in short: the best class with its probability, else the beginning of the whole."""
    best = top_class(reply)
    text = f"{best} {reply[best]:.4f}" if best is not None else str(reply)
    return text if len(text) <= _LONGEST_ANSWER else text[: _LONGEST_ANSWER - 1] + "…"
