"""Plans that the jobs of one run share: one search an engine, whatever the format of its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marsmith.errors import ExportError
from marsmith.export.int8.plan import Int8Plan

# These read the same file, made by the same writer; what torch.ao does is another matter.
_ALIKE = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class SharedPlans:
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
