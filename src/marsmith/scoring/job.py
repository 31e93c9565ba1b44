"""Run a batch: settle its plan, hand out its shards, and write ``_SUCCESS`` when all parts are there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.archive import Archive
from marsmith.archive.unpacked import UnpackedArchive, unpacked
from marsmith.child_processes import temporary_folder
from marsmith.errors import BatchError
from marsmith.machine import cgroup_cores, usable_cores
from marsmith.scoring import parts
from marsmith.scoring.destination import Folder, Prefix, open_destination
from marsmith.scoring.halving import ShardWork
from marsmith.scoring.lake import commit_delta, commit_iceberg
from marsmith.scoring.messages import WorkerSetup
from marsmith.scoring.options import BatchOptions
from marsmith.scoring.parts import PartRecord, part_name
from marsmith.scoring.plan import Plan
from marsmith.scoring.planning import settings_of, settle_plan
from marsmith.scoring.tables import parquet
from marsmith.scoring.workers import Limits, Progress, Workers

if TYPE_CHECKING:
    from marsmith.scoring.ray_workers import RayWorkers

__all__ = ["BatchOptions", "BatchResult", "Begin", "Committed", "Event", "run_batch"]


@dataclass(frozen=True)
class Begin:
    """A batch begins, or goes on.

    Attributes:
        plan: its plan.
        inputs: of this slice.
        done: inputs whose parts are there.
        bad: those of them without a right answer.
        workers: processes.
    """

    plan: Plan
    inputs: int
    done: int
    bad: int
    workers: int


@dataclass(frozen=True)
class Committed:
    """A finished batch is in a table.

    Attributes:
        table: as it was given.
        is_new: whether this run has committed it.
    """

    table: str
    is_new: bool


Event = Begin | Progress | Committed


@dataclass(frozen=True)
class BatchResult:
    """How a batch has ended.

    Attributes:
        plan: its plan.
        inputs: of this slice; all of them have a row.
        bad: those without a right answer.
        written: rows that this run has written.
        is_complete: whether all parts of the plan are there, also those of other slices.
        seconds: duration of this run.
    """

    plan: Plan
    inputs: int
    bad: int
    written: int
    is_complete: bool
    seconds: float


def run_batch(
    archive: Archive, options: BatchOptions, on_event: Callable[[Event], None] = lambda _: None
) -> BatchResult:
    """Answer all inputs of a batch that have no part yet.

    Args:
        archive: an archive that is admitted.
        options: what to do.
        on_event: called with what happens.

    Raises:
        UsageError: the sources have no inputs, or one twice.
        BatchError: another plan is there, too many inputs are bad, the archive does not load, or a table refuses.
        AccessError: the destination cannot be written.
        MissingDependencyError: pyarrow, or the package for an object store, is not installed.
    """
    parquet()
    began = time.monotonic()
    address = options.as_of.fill(options.to) if options.as_of else options.to
    with (
        unpacked(archive.path) as members,
        temporary_folder("marsmith-batch-") as work,
        open_destination(address) as to,
    ):
        plan, keys = settle_plan(to, settings_of(archive, members, options), options, work)
        result = _Run(archive.path, plan, keys, to, members, options, on_event).result()
        if result.is_complete:
            for table, commit in ((options.delta, commit_delta), (options.iceberg, commit_iceberg)):
                if table is not None:
                    on_event(Committed(table, commit(table, to, plan)))
    return replace(result, seconds=time.monotonic() - began)


class _Run:
    """One run of a batch whose plan is settled."""

    def __init__(
        self,
        archive: Path,
        plan: Plan,
        keys: Path,
        to: Folder | Prefix,
        members: UnpackedArchive,
        options: BatchOptions,
        on_event: Callable[[Event], None],
    ) -> None:
        self._archive, self._plan, self._keys, self._to, self._members = archive, plan, keys, to, members
        self._options, self._on_event = options, on_event
        self._shards = range(options.part.index, plan.shards, options.part.count)
        self._inputs = sum(map(plan.rows, self._shards))
        self._records: dict[str, PartRecord] = {}
        self._bad = 0

    def result(self) -> BatchResult:
        names = self._to.names()
        if parts.SUCCESS in names:
            return self._finished(names)
        self._note(parts.read_parts(self._to, self._names_in(names, self._shards), self._plan))
        rest = [shard for shard in self._shards if part_name(shard) not in self._records]
        written = 0
        if not self._options.plan_only:
            self._answer(rest)
            written = sum(map(self._plan.rows, rest))
        return self._result(written, is_complete=self._complete())

    def _finished(self, names: set[str]) -> BatchResult:
        """Return the result of a batch that has ended before."""
        text = self._to.read(parts.SUCCESS).decode("utf-8", "replace")
        success = parts.parse_success(text, f"{self._to.address}/{parts.SUCCESS}")
        if success.plan != self._plan.digest:
            raise BatchError(f"{self._to.address}/{parts.SUCCESS} is of another plan", tip="give --to another folder")
        if missing := sorted(set(success.parts) - names):
            raise BatchError(
                f"{self._to.address} has {parts.SUCCESS}, and not {missing[0]}: {len(missing)} parts are missing",
                tip=f"remove {self._to.address}/{parts.SUCCESS}, and run this again, which answers them again",
            )
        return BatchResult(self._plan, success.inputs, success.bad, 0, is_complete=True, seconds=0.0)

    def _answer(self, shards: Sequence[int]) -> None:
        self._check_errors()
        if not shards:
            return
        done = sum(sum(record.statuses.values()) for record in self._records.values())
        size = self._plan.settings.batch_size
        aside = self._options.quarantine
        with (
            open_destination(aside) if aside else nullcontext() as quarantine,
            self._workers(self._setup(quarantine), len(shards)) as workers,
        ):
            self._on_event(Begin(self._plan, self._inputs, done, self._bad, workers.count))
            for progress in workers.run(ShardWork.of(shard, self._plan.rows(shard), size) for shard in shards):
                self._on_event(progress)
                if progress.part:
                    self._note([progress.part])
                    self._check_errors()

    def _workers(self, setup: WorkerSetup, most: int) -> Workers | RayWorkers:
        limits = Limits(self._members.startup_timeout_s, self._members.response_timeout_s)
        count = self._options.workers
        if self._options.ray is not None:
            from marsmith.scoring.ray_workers import RayWorkers

            return RayWorkers(self._options.ray, setup, self._archive, count, limits)
        return Workers(setup, min(count or default_workers(self._plan, self._options.gpu_id), most), limits)

    def _setup(self, quarantine: Folder | Prefix | None) -> WorkerSetup:
        return WorkerSetup(
            folder=str(self._members.folder),
            plan=self._plan,
            keys=str(self._keys.absolute()),
            root=str(Path.cwd()),
            to=_absolute(self._to),
            temporary=_temporary(self._to),
            quarantine=_absolute(quarantine) if quarantine else None,
            quarantine_temporary=_temporary(quarantine),
            gpu_id=self._options.gpu_id,
        )

    def _complete(self) -> bool:
        """Write ``_SUCCESS`` if all parts are there; return whether they are."""
        names = self._to.names()
        if len(self._names_in(names, range(self._plan.shards))) < self._plan.shards:
            return False
        others = [name for name in map(part_name, range(self._plan.shards)) if name not in self._records]
        every = {**self._records, **{record.name: record for record in parts.read_parts(self._to, others, self._plan)}}
        ordered = [every[part_name(shard)] for shard in range(self._plan.shards)]
        self._to.create(parts.SUCCESS, parts.success_of(self._plan, ordered).render().encode())
        return True

    def _check_errors(self) -> None:
        limit = self._options.max_errors.of(self._inputs)
        if self._bad > limit:
            raise BatchError(
                f"{self._bad:,} of {self._inputs:,} inputs got no right answer, and --max-errors allows {limit:,};"
                f" parts that are written stay in {self._to.address}",
                tip="look at the column error of the parts, and raise --max-errors to go on",
            )

    def _note(self, records: Sequence[PartRecord]) -> None:
        """Note parts that were not there before."""
        self._records.update((record.name, record) for record in records)
        self._bad += sum(record.bad for record in records)

    def _names_in(self, names: set[str], shards: range) -> list[str]:
        return [name for name in map(part_name, shards) if name in names]

    def _result(self, written: int, *, is_complete: bool) -> BatchResult:
        return BatchResult(self._plan, self._inputs, self._bad, written, is_complete, 0.0)


def default_workers(plan: Plan, gpu_id: int | None) -> int:
    """Return the number of processes for this machine: one a core, or as many as there are threads for."""
    if gpu_id is not None:
        return 1
    cores = min(usable_cores(), int(cgroup_cores() or usable_cores()) or 1)
    return max(1, cores // plan.settings.threads)


def _absolute(destination: Folder | Prefix) -> str:
    """Return its address for a process with another working folder."""
    return str(destination.path.absolute()) if isinstance(destination, Folder) else destination.address


def _temporary(destination: Folder | Prefix | None) -> str | None:
    return str(destination.temporary) if isinstance(destination, Folder) else None
