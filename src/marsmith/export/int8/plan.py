"""How a model is quantised to int8, written down: what a search found, and a build repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from marsmith.errors import FormatError
from marsmith.names import did_you_mean

# Where a tensor's range comes from: its extremes, the share of its values given by `percentile`, or the range with the
# smallest mean squared error between a histogram of its values and what 8 bits make of it.
RANGES = ("minmax", "percentile", "histogram")
# How weights are rounded: each by itself, or so that the errors of those that act together cancel.
ROUNDINGS = ("nearest", "compensated")
DEFAULT_PERCENTILE = 99.999
DEFAULT_IMAGES = 96


@dataclass(frozen=True)
class Int8Plan:
    """Everything that decides an int8 file besides the weights and the calibration images.

    Attributes:
        ranges: how ranges of activations are found: one of RANGES.
        percentile: share of a tensor's values inside its range, in percent; for ``ranges: percentile`` alone.
        rounding: how weights are rounded: one of ROUNDINGS.
        correct_bias: take what rounding the weights adds to a channel on average off its bias.
        float_layers: names of layers that stay in float32; the names are those of the weights, less ``.weight``.
        images: how many calibration images are read, from the first on.
    """

    ranges: str = "histogram"
    percentile: float = DEFAULT_PERCENTILE
    rounding: str = "compensated"
    correct_bias: bool = True
    float_layers: tuple[str, ...] = ()
    images: int = DEFAULT_IMAGES

    def __post_init__(self) -> None:
        problems = []
        if self.ranges not in RANGES:
            problems.append(f"ranges {self.ranges!r} is none of {', '.join(RANGES)}{did_you_mean(self.ranges, RANGES)}")
        if self.rounding not in ROUNDINGS:
            problems.append(f"rounding {self.rounding!r} is none of {', '.join(ROUNDINGS)}")
        if not 50 < self.percentile <= 100:
            problems.append(f"percentile {self.percentile} is not above 50 and at most 100")
        if self.images < 1:
            problems.append(f"images {self.images} is below 1")
        if problems:
            raise FormatError("int8 plan", problems)

    def to_record(self) -> dict[str, Any]:
        """Return what the lock holds: plain numbers, strings and lists; ``from_record`` gives the plan back."""
        return asdict(self) | {"float_layers": list(self.float_layers)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Int8Plan:
        """Read what ``to_record`` returned; missing keys have their defaults.

        Raises:
            FormatError: a key is unknown, or a value is of the wrong type or out of range.
        """
        known = {field.name: field.default for field in fields(cls)}
        problems = [f"unknown key {key!r}{did_you_mean(key, known)}" for key in record if key not in known]
        values = {key: _plain(value) for key, value in record.items()}
        for key, value in values.items():
            if key in known and not _fits(value, known[key]):
                problems.append(f"{key} is {value!r}, not a {type(known[key]).__name__}")
        if problems:
            raise FormatError("int8 plan", problems)
        return cls(**values)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)
