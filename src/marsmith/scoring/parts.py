"""Parts, one Parquet file a shard, and ``_SUCCESS``, which is written when all are there."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO

from marsmith import state_files
from marsmith.errors import BatchError
from marsmith.scoring.destination import Destination
from marsmith.scoring.plan import Plan
from marsmith.scoring.rows import ERROR, Row, to_table
from marsmith.scoring.tables import parquet

SUCCESS = "_SUCCESS"
_FORMAT = 1
_PART = re.compile(r"part-(\d{7,})\.parquet")
_PLAN, _ARCHIVE, _STATUSES = b"marsmith.plan", b"marsmith.archive", b"marsmith.statuses"
_READERS = 8


@dataclass(frozen=True)
class PartRecord:
    """A part that is there.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        statuses: how many rows have each HTTP status.
    """

    name: str
    sha256: str
    statuses: Mapping[int, int]

    @property
    def bad(self) -> int:
        """Rows without a right answer."""
        return sum(count for status, count in self.statuses.items() if status >= ERROR)


@dataclass(frozen=True)
class Success:
    """Content of ``_SUCCESS``.

    Attributes:
        plan: digest of the plan.
        archive: SHA-256 of the archive.
        model: name and version.
        inputs: how many, which is also the number of rows.
        bad: rows without a right answer.
        statuses: how many rows have each HTTP status.
        parts: SHA-256 of each part, by name.
    """

    plan: str
    archive: str
    model: str
    inputs: int
    bad: int
    statuses: Mapping[int, int] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """Return the content of the file."""
        return state_files.render(self, _FORMAT)


def parse_success(text: str, source: str) -> Success:
    """Parse the content of ``_SUCCESS``.

    Raises:
        FormatError: it is damaged, or a later release wrote it.
    """
    return state_files.parse(Success, text, source, version=_FORMAT)


def part_name(shard: int) -> str:
    """Return the name of a part; the parts of one batch in the order of their names are in the order of the inputs."""
    return f"part-{shard:07}.parquet"


def shard_of(name: str) -> int | None:
    """Return the shard of a part's name; None for any other name."""
    match = _PART.fullmatch(name)
    return int(match[1]) if match else None


def encode_part(rows: Sequence[Row], plan: Plan) -> bytes:
    """Return the bytes of a part: the same for the same rows and plan."""
    statuses = dict(sorted(Counter(row.status for row in rows).items()))
    table = to_table(rows, plan.settings.reply).replace_schema_metadata(
        {_PLAN: plan.digest, _ARCHIVE: plan.settings.archive, _STATUSES: json.dumps(statuses)}
    )
    buffer = BytesIO()
    parquet().write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_part(name: str, content: bytes, plan: Plan, where: str) -> PartRecord:
    """Return what a part says about itself.

    Raises:
        BatchError: it is damaged, or it belongs to another plan.
    """
    try:
        found = parquet().read_schema(BytesIO(content)).metadata or {}
    except (OSError, ValueError) as error:
        raise BatchError(
            f"{where}/{name} is damaged: {error}", tip=f"remove {where}/{name}, and run this again"
        ) from None
    theirs = found.get(_PLAN, b"none").decode()
    if theirs != plan.digest:
        raise BatchError(
            f"{where}/{name} belongs to the plan {theirs[:12]}, and this one is {plan.digest[:12]}",
            tip="give --to another folder",
        )
    statuses = {int(status): count for status, count in json.loads(found[_STATUSES]).items()}
    return PartRecord(name, digest_of(content), statuses)


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of a part, in hex."""
    return hashlib.sha256(content).hexdigest()


def read_parts(destination: Destination, names: Iterable[str], plan: Plan) -> list[PartRecord]:
    """Return what parts say about themselves, in the order of the names.

    Raises:
        BatchError: a part is damaged, or belongs to another plan.
        AccessError: one cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda name: read_part(name, destination.read(name), plan, destination.address), names))


def success_of(plan: Plan, parts: Sequence[PartRecord]) -> Success:
    """Return the content of ``_SUCCESS`` for all parts of a plan.

    Raises:
        BatchError: a part has fewer or more rows than its shard.
    """
    statuses: Counter[int] = Counter()
    for shard, part in enumerate(parts):
        if sum(part.statuses.values()) != plan.rows(shard):
            raise BatchError(f"{part.name} has {sum(part.statuses.values())} rows, and its shard {plan.rows(shard)}")
        statuses.update(part.statuses)
    return Success(
        plan.digest,
        plan.settings.archive,
        plan.settings.model,
        plan.inputs,
        sum(part.bad for part in parts),
        dict(sorted(statuses.items())),
        {part.name: part.sha256 for part in parts},
    )
