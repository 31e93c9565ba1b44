"""The plan in a destination: written once, found again, and never exchanged for another one."""

from __future__ import annotations

from pathlib import Path

from marsmith import files
from marsmith.archive import Archive
from marsmith.archive.admit import digest_of
from marsmith.archive.unpacked import UnpackedArchive
from marsmith.errors import BatchError, FormatError, UsageError
from marsmith.scoring import parts
from marsmith.scoring.destination import Folder, Prefix
from marsmith.scoring.options import BatchOptions
from marsmith.scoring.plan import FILE_NAME, Plan, Settings, differences, first_difference, make_plan, parse_plan
from marsmith.scoring.rows import reply_form
from marsmith.scoring.sources import Selection, holds, list_items
from marsmith.state_files import NewerFormatError


def settings_of(archive: Archive, members: UnpackedArchive, options: BatchOptions) -> Settings:
    """Return what the parts depend on, beside the inputs."""
    threads = members.handler_settings.get("threads")
    return Settings(
        model=f"{archive.manifest.model_name}:{archive.manifest.model_version}",
        archive=digest_of(archive),
        shard_rows=options.shard_rows,
        batch_size=options.batch_size or members.batch_size,
        threads=threads if isinstance(threads, int) and threads > 0 else 1,
        reply=reply_form(archive),
        content_type=options.content_type,
        column=options.column,
        key=options.key,
        as_of=options.as_of.until.isoformat() if options.as_of else "",
    )


def settle_plan(to: Folder | Prefix, settings: Settings, options: BatchOptions, work: Path) -> tuple[Plan, Path]:
    """Return the plan of a batch and its file of keys: the one that is there, else a new one, which is written.

    Args:
        to: the destination.
        settings: what the parts depend on.
        options: what the batch is asked to do.
        work: empty folder.

    Raises:
        BatchError: another plan is there, or parts without a plan.
        UsageError: the sources have no inputs, or one twice, or the batch would write into one of them.
    """
    if options.resume:
        return _resumed(to, settings, work)
    sources = [options.as_of.fill(source) if options.as_of else source for source in options.sources]
    for flag, place in (("--to", to.address), ("--quarantine", options.quarantine)):
        _check_apart(sources, flag, place)
    selection = Selection(options.column, options.key, options.as_of.until_ns if options.as_of else None)
    plan, keys = make_plan(list_items(sources, selection), sources, settings, work)
    if FILE_NAME not in (names := to.names()):
        if any(parts.shard_of(name) is not None for name in names):
            raise BatchError(f"{to.address} has parts, and no {FILE_NAME}", tip="give --to another folder")
        to.upload(plan.keys_name, keys)
        if to.create(FILE_NAME, plan.render().encode()):
            return plan, keys
    there = _stored(to)
    if there.digest != plan.digest:
        raise _other_plan(to, there, plan, keys, work)
    return plan, keys


def _check_apart(sources: list[str], flag: str, place: str | None) -> None:
    """Refuse a folder for results that a source has, because its files would be inputs of the next run."""
    source = next((each for each in sources if place is not None and holds(each, place)), None)
    if source is not None:
        raise UsageError(
            f"{flag} {place} is in the source {source}: its files would be inputs of the next run",
            tip=f"give {flag} a folder beside it",
        )


def _resumed(to: Folder | Prefix, settings: Settings, work: Path) -> tuple[Plan, Path]:
    if FILE_NAME not in to.names():
        raise BatchError(f"{to.address} has no plan to resume", tip="run this without --resume, which makes one")
    plan = _stored(to)
    if plan.settings.archive != settings.archive:
        raise BatchError(
            f"{to.address} has parts of {plan.settings.model} with SHA-256 {plan.settings.archive}, and this archive is"
            f" {settings.model} with SHA-256 {settings.archive}",
            tip="give --to another folder, or name that archive",
        )
    return plan, stored_keys(to, plan, work)


def _stored(to: Folder | Prefix) -> Plan:
    try:
        return parse_plan(to.read(FILE_NAME).decode("utf-8", "replace"), f"{to.address}/{FILE_NAME}")
    except NewerFormatError:
        raise
    except FormatError as error:
        raise BatchError(error.message, tip="give --to another folder") from None


def stored_keys(to: Folder | Prefix, plan: Plan, work: Path) -> Path:
    """Return the file of keys in a destination, as a file of this machine.

    Args:
        to: the destination.
        plan: whose keys.
        work: folder for a copy.

    Raises:
        BatchError: it is missing or damaged.
    """
    try:
        if isinstance(to, Folder):
            path = to.path / plan.keys_name
        else:
            path = work / plan.keys_name
            path.write_bytes(to.read(plan.keys_name))
        found = files.sha256(path)
    except FileNotFoundError:
        found = "missing"
    if found != plan.keys:
        raise BatchError(f"{to.address}/{plan.keys_name} is {'missing' if found == 'missing' else 'damaged'}")
    return path


def _other_plan(to: Folder | Prefix, there: Plan, plan: Plan, keys: Path, work: Path) -> BatchError:
    found = differences(there, plan)
    if there.keys != plan.keys:
        found.append(f"first of them: {first_difference(stored_keys(to, there, work), keys)}")
    message = f"{to.address} has the plan {there.digest[:12]}, and this would be {plan.digest[:12]}"
    is_same_archive = there.settings.archive == plan.settings.archive
    return BatchError(
        "\n  ".join([message, *found]),
        tip="give --to another folder" + (", or --resume to go on with that plan" if is_same_archive else ""),
    )
