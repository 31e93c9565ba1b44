"""Plan of an archive: checks all inputs before anything is written, and reports all problems at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from marsmith import __version__
from marsmith.archive import manifest as manifest_format
from marsmith.archive import sums
from marsmith.archive.manifest import FORMAT_VERSION, Manifest
from marsmith.archive.members import Member, folded, name_problem
from marsmith.errors import BuildError
from marsmith.stand_ins import pointer_at

DATE_VARIABLE = "SOURCE_DATE_EPOCH"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIXED_DATE = "01/01/1980 00:00:00"
_WRITTEN_BY_US = (manifest_format.FILE_NAME, sums.FILE_NAME)


@dataclass(frozen=True)
class PlannedMember:
    """A member with a checked source: it exists, it is a file, and it has this size in bytes."""

    member: Member
    size: int


def completed(manifest: Manifest) -> Manifest:
    """Fill in missing fields: date, tool and marsmith's own key.

    Raises:
        BuildError: SOURCE_DATE_EPOCH is not a date.
    """
    return replace(
        manifest,
        created_on=manifest.created_on or created_on(),
        archiver_version=manifest.archiver_version or f"marsmith {__version__}",
        marsmith=manifest.marsmith or {"formatVersion": FORMAT_VERSION},
    )


def created_on() -> str:
    """Return the date for the manifest: SOURCE_DATE_EPOCH in UTC, else a fixed date.

    Raises:
        BuildError: SOURCE_DATE_EPOCH is not a date.
    """
    seconds = os.environ.get(DATE_VARIABLE)
    if not seconds:
        return _FIXED_DATE
    try:
        date = _EPOCH + timedelta(seconds=int(seconds))
    except (ValueError, OverflowError):
        raise BuildError(f"{DATE_VARIABLE} is {seconds!r}, which is not a number of seconds since 1970") from None
    return f"{date.day:02}/{date.month:02}/{date.year:04} {date.hour:02}:{date.minute:02}:{date.second:02}"


def planned(manifest: Manifest, members: Iterable[Member], root: Path | None) -> list[PlannedMember]:
    """Check every member and return them sorted by name, in the order of code points.

    Args:
        manifest: manifest, which names some of the members.
        members: all members except the manifest and the digests.
        root: folder that must contain every source, after resolving links; None: any folder.

    Raises:
        BuildError: there are problems; the message lists all of them.
    """
    ordered = sorted(members, key=lambda member: member.name)
    names = [member.name for member in ordered]
    problems = [*_name_problems(names), *_shared_names(ordered), *_missing(manifest, names)]
    plan = []
    for member in ordered:
        problem, size = _source(member, root)
        problems += [problem] if problem else []
        plan.append(PlannedMember(member, size))
    if problems:
        raise BuildError("\n".join(problems), tip="nothing was written")
    return plan


def _name_problems(names: Sequence[str]) -> list[str]:
    problems = [f"{name!r}: {problem}" for name in names if (problem := name_problem(name))]
    seen = {folded(name): name for name in _WRITTEN_BY_US}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other in _WRITTEN_BY_US:
            problems.append(f"{name!r}: this member is written by marsmith itself")
        elif other != name:
            problems.append(f"{name!r} and {other!r} are one file where case or Unicode normalisation do not count")
    folders = {folded(str(parent)): name for name in names for parent in PurePosixPath(name).parents}
    problems += [f"{name!r} is a file and also a folder" for name in names if folded(name) in folders]
    return problems


def _shared_names(members: Sequence[Member]) -> list[str]:
    """Return the names that several members share, with their sources."""
    sources: dict[str, list[str]] = {}
    for member in members:
        made = "what marsmith writes" if isinstance(member.source, bytes) else str(member.source)
        sources.setdefault(member.name, []).append(made)
    return [
        f"{name!r}: two members have this name: {' and '.join(found)}"
        for name, found in sources.items()
        if len(found) > 1
    ]


def _missing(manifest: Manifest, names: Sequence[str]) -> list[str]:
    """Return the members that the manifest names and that are missing; a built-in handler is not a member."""
    handler = manifest.handler.split(":")[0]
    named = {
        "serializedFile": manifest.serialized_file,
        "modelFile": manifest.model_file,
        "requirementsFile": manifest.requirements_file,
        "configFile": manifest.config_file,
        "handler": handler if handler.endswith(".py") else None,
    }
    present = set(names)
    return [
        f"the manifest's {key} is {name!r}: no such member"
        for key, name in named.items()
        if name and name not in present
    ]


def _source(member: Member, root: Path | None) -> tuple[str | None, int]:
    """Return the problem with a member's source, if any, and its size in bytes."""
    source = member.source
    if isinstance(source, bytes):
        return None, len(source)
    try:
        status = source.stat()
    except FileNotFoundError:
        kind = "is a link to a file that does not exist" if source.is_symlink() else "does not exist"
        return f"{source}: {kind}", 0
    except OSError as error:
        return f"{source}: {error.strerror}", 0
    if stat.S_ISDIR(status.st_mode):
        return f"{source}: a folder instead of a file", 0
    if not stat.S_ISREG(status.st_mode):
        return f"{source}: not a regular file", 0
    if root is not None and not source.resolve().is_relative_to(root.resolve()):
        return f"{source}: leads out of {root}, to {source.resolve()}", 0
    instead = pointer_at(source)
    if instead:
        return f"{source} {instead.what}, not the file itself: {instead.tip}", 0
    return None, status.st_size
