"""What a batch is asked to do."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from marsmith.errors import UsageError

SHARD_ROWS = 1000
_LIMIT = re.compile(r"(\d+)|(\d+(?:\.\d+)?)%")
_SLICE = re.compile(r"(\d*)/(\d+)")
_DATE = re.compile(r"\{date(?::([^{}]+))?\}")
# The variable that Kubernetes gives the pods of an Indexed Job.
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"


@dataclass(frozen=True)
class ErrorLimit:
    """How many inputs may get no right answer.

    Attributes:
        count: number; None: it is a share.
        share: of the inputs, 0 to 1.
    """

    count: int | None = None
    share: float = 1.0

    @classmethod
    def parse(cls, text: str) -> ErrorLimit:
        """Parse ``N`` or ``P%``; raises UsageError if it is neither."""
        match = _LIMIT.fullmatch(text)
        if not match or (match[2] and float(match[2]) > 100):
            raise UsageError(f"--max-errors {text!r} is neither a number nor a percentage", tip="as in 100, or 0.5%")
        return cls(int(match[1])) if match[1] else cls(None, float(match[2]) / 100)

    def of(self, inputs: int) -> int:
        """Return the largest number of such inputs among so many."""
        return math.floor(inputs * self.share) if self.count is None else self.count


@dataclass(frozen=True)
class Slice:
    """Every ``count``-th shard, from number ``index`` on, which is at least 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str] = os.environ) -> Slice:
        """Parse ``I/N``, or ``/N`` in a pod of an Indexed Job; raises UsageError if it is neither."""
        match = _SLICE.fullmatch(text)
        index = (match[1] or environment.get(INDEX_VARIABLE, "")) if match else ""
        if not match or not index.isdigit() or int(index) >= int(match[2]):
            raise UsageError(
                f"--slice {text!r} is not a slice I/N with I from 0 to N - 1",
                tip=f"as in 0/4; /4 takes I from the variable {INDEX_VARIABLE}",
            )
        return cls(int(index), int(match[2]))


def ray_address(text: str) -> str:
    """Parse ``ray`` or ``ray:ADDRESS``; raises UsageError if it is neither."""
    engine, _, address = text.partition(":")
    if engine != "ray":
        raise UsageError(f"--on {text!r} is not an engine", tip="--on ray, or --on ray:HOST:6379")
    return address


@dataclass(frozen=True)
class AsOf:
    """A day, or a moment, that a batch is about.

    Attributes:
        moment: begin of the day, or the moment.
        until: inputs must have been changed before this.
    """

    moment: datetime
    until: datetime

    @classmethod
    def parse(cls, text: str) -> AsOf:
        """Parse a date (its end counts, in UTC), ``yesterday``, or a date and time; raises UsageError for others."""
        if text == "yesterday":
            text = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
        try:
            if len(text) == len("2026-11-28"):
                day = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
                return cls(day, day + timedelta(days=1))
            moment = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            tip = "as in 2026-11-28, 2026-11-28T06:00+01:00, or yesterday"
            raise UsageError(f"--as-of {text!r} is not a date, or a date and time", tip=tip) from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return cls(moment, moment)

    @property
    def until_ns(self) -> int:
        """The end in nanoseconds since the epoch."""
        return int(self.until.timestamp()) * 1_000_000_000

    def fill(self, text: str) -> str:
        """Return a source or a destination with the date in place of ``{date}``, or of ``{date:%Y/%m/%d}``."""
        return _DATE.sub(lambda found: self.moment.strftime(found[1] or "%Y-%m-%d"), text)


@dataclass(frozen=True)
class BatchOptions:
    """What a batch is asked to do.

    Attributes:
        sources: files, folders, patterns, tables, tar files, URLs.
        to: path or URL of the destination.
        shard_rows: rows of a part.
        batch_size: inputs that the handler gets at once; None: the model config's.
        workers: processes; None: one a core.
        content_type: of all inputs; None: guessed from each.
        column: column of tables with the inputs, or suffix of the members of tar files.
        key: column of tables with the keys.
        as_of: only inputs changed before; None: all.
        max_errors: the batch stops if more inputs get no right answer.
        quarantine: path or URL for copies of these inputs; None: no copies.
        part: which shards.
        gpu_id: number of the GPU; None for the CPU.
        resume: go on with the plan that is there, without listing the sources again.
        plan_only: write the plan, and no part.
        delta: path or URL of a Delta table to commit the batch to when it is finished; None: to none.
        iceberg: the same for an Iceberg table, as CATALOG.NAMESPACE.TABLE.
        ray: address of a Ray cluster whose nodes answer; empty: the one that RAY_ADDRESS names, or that of this
            machine; None: the processes of this machine answer.
    """

    sources: tuple[str, ...]
    to: str
    shard_rows: int = SHARD_ROWS
    batch_size: int | None = None
    workers: int | None = None
    content_type: str | None = None
    column: str | None = None
    key: str | None = None
    as_of: AsOf | None = None
    max_errors: ErrorLimit = ErrorLimit()
    quarantine: str | None = None
    part: Slice = Slice()
    gpu_id: int | None = None
    resume: bool = False
    plan_only: bool = False
    ray: str | None = None
    delta: str | None = None
    iceberg: str | None = None
