"""How a model is quantised to int8, written down: what a search found, and a build repeats.

Plans that the jobs of one run share: one search an engine, whatever the format of its file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from marsmith.errors import ExportError, FormatError
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


# These read the same file, made by the same writer; what torch.ao does is another matter.
_ALIKE = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class PlanCache:
    """What the jobs of a run have found for each engine.

    Attributes:
        folder: that they share; None where there is but one job.
        engine: of this job.
    """

    folder: Path | None
    engine: str

    def own(self) -> Int8Plan | None:
        """Return the plan that another job has found for this engine.

        Raises:
            ExportError: the other job's, where it found none.
        """
        record = self._read(self.engine)
        if record is not None and "refused" in record:
            raise ExportError(record["refused"], tip=record["tip"])
        return Int8Plan.from_record(record["plan"]) if record is not None else None

    def of_others(self) -> Int8Plan | None:
        """Return a plan that was found for another engine and may do here as well."""
        if self.engine not in _ALIKE:
            return None
        found = (self._read(engine) for engine in _ALIKE if engine != self.engine)
        return next((Int8Plan.from_record(one["plan"]) for one in found if one is not None and "plan" in one), None)

    def keep(self, plan: Int8Plan) -> None:
        """Let the next jobs have a plan; it replaces the one before."""
        self._write({"plan": plan.to_record()})

    def refuse(self, error: ExportError) -> None:
        """Let the next jobs know that there is no plan."""
        self._write({"refused": error.message, "tip": error.tip})

    def _read(self, engine: str) -> dict[str, Any] | None:
        path = self._path(engine)
        if path is None or not path.is_file():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def _write(self, record: dict[str, Any]) -> None:
        path = self._path(self.engine)
        if path is not None:
            path.write_text(json.dumps(record), encoding="utf-8")

    def _path(self, engine: str) -> Path | None:
        return self.folder / f"int8-{engine}.json" if self.folder else None
