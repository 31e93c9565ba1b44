"""The plan of a batch: which inputs, in which order, cut into which shards, answered by which archive and how.

It is written once. All that decides the bytes of a part is in it, so two plans are equal if their digests are.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice, zip_longest
from pathlib import Path

from marsmith import state_files
from marsmith.errors import UsageError
from marsmith.scoring.items import Item, from_line, key_of, to_line

FILE_NAME = "_plan.json"
_FORMAT = 1
# Lines that are sorted in memory at once (about 30 MB), and files that are merged at once.
_CHUNK_LINES, _MOST_FILES = 200_000, 256
_SHOWN_KEY = 200


@dataclass(frozen=True)
class Settings:
    """What a part depends on, beside the inputs.

    Attributes:
        model: name and version in the archive.
        archive: SHA-256 of the archive.
        shard_rows: rows of a part.
        batch_size: inputs that the handler gets at once.
        threads: of one worker.
        content_type: of all inputs; None: guessed from each.
        reply: which columns the replies have, see ``rows``.
        column: column of tables with the inputs.
        key: column of tables with the keys.
        as_of: time before which inputs must have been changed; empty: any.
    """

    model: str
    archive: str
    shard_rows: int
    batch_size: int
    threads: int
    reply: str
    content_type: str | None = None
    column: str | None = None
    key: str | None = None
    as_of: str = ""


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        settings: what a part depends on, beside the inputs.
        sources: as they were given.
        inputs: how many.
        keys: SHA-256 of the file of keys, which has the inputs in order.
        offsets: where each shard begins in the file of keys, and where the last one ends.
    """

    settings: Settings
    sources: tuple[str, ...]
    inputs: int
    keys: str
    offsets: tuple[int, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, in hex."""
        return hashlib.sha256(self.render().encode()).hexdigest()

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.offsets) - 1

    @property
    def keys_name(self) -> str:
        """Name of the file of keys in the destination."""
        return f"_plan-{self.keys[:16]}.keys"

    def rows(self, shard: int) -> int:
        """Return the number of inputs of a shard."""
        return min(self.settings.shard_rows, self.inputs - shard * self.settings.shard_rows)

    def render(self) -> str:
        """Return the content of the plan's file."""
        return state_files.render(self, _FORMAT)


def parse_plan(text: str, source: str) -> Plan:
    """Parse the content of a plan's file.

    Raises:
        FormatError: it is damaged, or a later release wrote it.
    """
    return state_files.parse(Plan, text, source, version=_FORMAT)


def make_plan(items: Iterable[Item], sources: Sequence[str], settings: Settings, work: Path) -> tuple[Plan, Path]:
    """Sort the inputs and cut them into shards, in bounded memory; return the plan and its file of keys.

    Args:
        items: the inputs, in any order.
        sources: where they come from.
        settings: what else decides the parts.
        work: empty folder for the file of keys, and for other files while this runs.

    Raises:
        UsageError: there is no input, or two have the same key.
    """
    target = work / "keys"
    digest, count, offset, offsets = hashlib.sha256(), 0, 0, []
    before = b""
    with target.open("wb") as file:
        for line in _sorted_lines(items, work):
            if before and key_of(line) == key_of(before):
                raise _twice(before, line, sources)
            if count % settings.shard_rows == 0:
                offsets.append(offset)
            file.write(line)
            digest.update(line)
            before = line
            count += 1
            offset += len(line)
    if not count:
        raise UsageError(f"no inputs in {', '.join(sources)}", tip=_why_none(settings))
    return Plan(settings, tuple(sources), count, digest.hexdigest(), (*offsets, offset)), target


def shard_items(keys: Path, plan: Plan, shard: int) -> list[Item]:
    """Return the inputs of a shard, in order."""
    start, end = plan.offsets[shard], plan.offsets[shard + 1]
    with keys.open("rb") as file:
        file.seek(start)
        return [from_line(line) for line in file.read(end - start).splitlines(keepends=True)]


def differences(old: Plan, new: Plan) -> list[str]:
    """Return what differs between two plans, one sentence each."""
    found = []
    for each in fields(Settings):
        was, now = getattr(old.settings, each.name), getattr(new.settings, each.name)
        if was != now:
            found.append(f"{each.name.replace('_', ' ')}: {was}, and now {now}")
    if old.sources != new.sources:
        found.append(f"sources: {' '.join(old.sources)}, and now {' '.join(new.sources)}")
    if old.keys != new.keys:
        found.append(f"inputs: {old.inputs:,} with the digest {old.keys[:12]}, and now {new.inputs:,}, {new.keys[:12]}")
    return found


def first_difference(old: Path, new: Path) -> str:
    """Return the first input that differs between two files of keys, in words."""
    with old.open("rb") as before, new.open("rb") as after:
        for was, now in zip_longest(before, after, fillvalue=b""):
            if was != now:
                break
        else:
            return ""
    if was and now and key_of(was) == key_of(now):
        return f"{_shown(was)} has changed"
    is_new = not was or (now and now < was)
    return f"{_shown(now)} is new" if is_new else f"{_shown(was)} is missing"


def _sorted_lines(items: Iterable[Item], work: Path) -> Iterator[bytes]:
    lines = map(to_line, items)
    chunks: list[Path] = []
    while chunk := list(islice(lines, _CHUNK_LINES)):
        chunk.sort()
        if len(chunk) < _CHUNK_LINES and not chunks:
            return iter(chunk)
        chunks.append(_written(work / f"sorted-{len(chunks)}", chunk))
    del chunk
    made = len(chunks)
    while len(chunks) > _MOST_FILES:
        some, chunks = chunks[:_MOST_FILES], chunks[_MOST_FILES:]
        chunks.append(_written(work / f"sorted-{made}", _merged(some)))
        made += 1
    return _merged(chunks)


def _written(path: Path, lines: Iterable[bytes]) -> Path:
    with path.open("wb") as file:
        file.writelines(lines)
    return path


def _merged(chunks: Sequence[Path]) -> Iterator[bytes]:
    files = [chunk.open("rb") for chunk in chunks]
    try:
        yield from heapq.merge(*files)
    finally:
        for file, chunk in zip(files, chunks, strict=True):
            file.close()
            chunk.unlink()


def _twice(first: bytes, second: bytes, sources: Sequence[str]) -> UsageError:
    named = [sources[from_line(line).source] for line in (first, second)]
    where = f"in {named[0]}" if named[0] == named[1] else f"in {named[0]}, and in {named[1]}"
    return UsageError(
        f"the input {_shown(first)} comes twice: {where}", tip="name each input once; a table may name its keys: --key"
    )


def _shown(line: bytes) -> str:
    key = from_line(line).key
    return repr(key if len(key) <= _SHOWN_KEY else key[: _SHOWN_KEY - 1] + "…")


def _why_none(settings: Settings) -> str:
    if settings.as_of:
        return f"only inputs that were last changed before {settings.as_of} are taken: --as-of"
    return "hidden files are left out; in tar files --column SUFFIX chooses among the members"
