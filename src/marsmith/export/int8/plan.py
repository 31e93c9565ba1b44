"""Plan of an int8 quantisation, and the plans that the jobs of one run share.

A search finds a plan, a lock records it, and a build repeats it. One run searches once for each engine, whatever the
format of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from marsmith.errors import ExportError, FormatError
from marsmith.names import did_you_mean

# Origin of a tensor's range: its extremes, the share of its values in `percentile`, or the range with the smallest mean
# squared error between a histogram of its values and the 8-bit values.
RANGES = ("minmax", "percentile", "histogram")
# Rounding of weights: each one separately, or so that the errors of those that act together cancel.
ROUNDINGS = ("nearest", "compensated")
DEFAULT_PERCENTILE = 99.999
DEFAULT_IMAGES = 96


@dataclass(frozen=True)
class Int8Plan:
    """Everything that determines an int8 file besides the weights and the calibration images.

    Attributes:
        ranges: method for the ranges of activations: one of RANGES.
        percentile: share of a tensor's values inside its range, in percent; only for ``ranges: percentile``.
        rounding: rounding of weights: one of ROUNDINGS.
        correct_bias: whether to subtract from each bias the mean error of rounded weights.
        float_layers: names of layers that stay in float32: names of the weights without ``.weight``.
        images: number of calibration images to read, starting with the first.
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
            problems.append(
                f"ranges {self.ranges!r} is not one of {', '.join(RANGES)}{did_you_mean(self.ranges, RANGES)}"
            )
        if self.rounding not in ROUNDINGS:
            problems.append(f"rounding {self.rounding!r} is not one of {', '.join(ROUNDINGS)}")
        if not 50 < self.percentile <= 100:
            problems.append(f"percentile {self.percentile} is not above 50 and at most 100")
        if self.images < 1:
            problems.append(f"images {self.images} is below 1")
        if problems:
            raise FormatError("int8 plan", problems)

    def to_record(self) -> dict[str, Any]:
        """Return the record for the lock: plain numbers, strings and lists; ``from_record`` restores the plan."""
        return asdict(self) | {"float_layers": list(self.float_layers)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Int8Plan:
        """Parse a record of ``to_record``; missing keys have their defaults.

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


# These read the same file from the same writer; torch.ao is different.
_ALIKE = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class PlanCache:
    """Plans of the jobs of a run, by engine.

    Attributes:
        folder: shared folder; None if there is only one job.
        engine: engine of this job.
    """

    folder: Path | None
    engine: str

    def own(self) -> Int8Plan | None:
        """Return the plan that another job has found for this engine.

        Raises:
            ExportError: the error of the other job, if it found none.
        """
        record = self._read(self.engine)
        if record is not None and "refused" in record:
            raise ExportError(record["refused"], tip=record["tip"])
        return Int8Plan.from_record(record["plan"]) if record is not None else None

    def of_others(self) -> Int8Plan | None:
        """Return a plan for another engine that may also suit this one."""
        if self.engine not in _ALIKE:
            return None
        found = (self._read(engine) for engine in _ALIKE if engine != self.engine)
        return next((Int8Plan.from_record(one["plan"]) for one in found if one is not None and "plan" in one), None)

    def keep(self, plan: Int8Plan) -> None:
        """Save a plan for the next jobs; it replaces the previous one."""
        self._write({"plan": plan.to_record()})

    def refuse(self, error: ExportError) -> None:
        """Save for the next jobs that there is no plan."""
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
