"""Compare two replies to the same request, by what they hold: classes, tensors, other JSON, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marsmith.predictions.join import Pair


@dataclass(frozen=True)
class Tolerance:
    """The largest difference at which two replies agree.

    Attributes:
        probability: of a class, 0 to 1.
        absolute: of any other number.
        relative: of any other number, as a share of the larger one; a number within either of the two agrees.
    """

    probability: float = 0.1
    absolute: float = 1e-3
    relative: float = 1e-2


@dataclass(frozen=True)
class Difference:
    """What differs between two replies.

    Attributes:
        agrees: whether they say the same, within the tolerance.
        largest: largest difference of two numbers; NaN if no numbers were compared.
        flips: pairs of old and new class, for each item whose class differs.
    """

    agrees: bool
    largest: float = math.nan
    flips: tuple[tuple[str, str], ...] = field(default=())


SAME = Difference(agrees=True)
OTHER = Difference(agrees=False)


def compare_replies(pair: Pair, tolerance: Tolerance) -> Difference:
    """Compare the replies of a pair; both answered with a status below 400.

    A classifier's reply (an object of classes and probabilities) agrees if the most probable class is the same and its
    probability differs by no more than the tolerance. Replies that are not logged as JSON are compared by digest.
    """
    if pair.old.reply is None or pair.new.reply is None:
        return Difference(agrees=pair.old.reply_sha256 == pair.new.reply_sha256 != "")
    return _compare(contents(pair.old.reply), contents(pair.new.reply), tolerance)


def contents(reply: Any) -> Any:
    """Return what a handler said, without the envelope: of KServe v1 the predictions, of v2 the outputs."""
    if isinstance(reply, Mapping) and reply.keys() == {"predictions"}:
        return reply["predictions"]
    if isinstance(reply, Mapping) and {"outputs", "model_version"} <= reply.keys():
        # Its id is another one each time, and its version differs.
        return [output.get("data") if isinstance(output, Mapping) else output for output in reply["outputs"]]
    return reply


def top_class(reply: Any) -> str | None:
    """Return the most probable class of a classifier's reply; None for any other reply."""
    if not isinstance(reply, Mapping) or not reply or not all(_is_probability(each) for each in reply.values()):
        return None
    top: str = max(reply, key=lambda name: (reply[name], name))
    return top


def _compare(old: Any, new: Any, tolerance: Tolerance) -> Difference:
    old_class, new_class = top_class(old), top_class(new)
    if old_class is not None and new_class is not None:
        return _compare_classes(old, new, (old_class, new_class), tolerance)
    if _is_number(old) and _is_number(new):
        largest = _distance(old, new)
        near = largest <= max(tolerance.absolute, tolerance.relative * max(abs(old), abs(new)))
        return Difference(near, largest)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if old.keys() != new.keys():
            return OTHER
        return _together([_compare(old[key], new[key], tolerance) for key in old])
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return OTHER
        return _together([_compare(*each, tolerance) for each in zip(old, new, strict=True)])
    return SAME if type(old) is type(new) and old == new else OTHER


def _compare_classes(
    old: Mapping[str, float], new: Mapping[str, float], tops: tuple[str, str], tolerance: Tolerance
) -> Difference:
    # Replies hold the most probable classes only; one that a reply leaves out has nothing to compare.
    largest = max((abs(old[name] - new[name]) for name in old.keys() & new.keys()), default=math.nan)
    if tops[0] != tops[1]:
        return Difference(agrees=False, largest=largest, flips=(tops,))
    return Difference(abs(old[tops[0]] - new[tops[0]]) <= tolerance.probability, largest)


def _together(parts: Sequence[Difference]) -> Difference:
    largest = max((part.largest for part in parts if not math.isnan(part.largest)), default=math.nan)
    flips = tuple(flip for part in parts for flip in part.flips)
    return Difference(all(part.agrees for part in parts), largest, flips)


def _distance(old: float, new: float) -> float:
    return 0.0 if old == new else abs(old - new)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1
