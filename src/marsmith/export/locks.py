"""Locks on disk: read, compare with the present inputs, and write atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marsmith import files
from marsmith.config.export_spec import ExportSpec
from marsmith.errors import ExportError
from marsmith.export.lock import SUFFIX, ExportLock, Fits, parse_export_lock, render_export_lock
from marsmith.export.machine import versions
from marsmith.project import Project


def lock_path(project: Project, model: str) -> Path:
    """Return the path of a model's lock, beside its spec."""
    return project.specs / f"{model}{SUFFIX}"


def relock_command(model: str) -> str:
    """Return the command that makes a lock again."""
    return f"marsmith export {model} --relock"


def read_lock(project: Project, model: str) -> ExportLock | None:
    """Read the lock of a model; None if there is none.

    Raises:
        FormatError: the lock is damaged.
        ExportError: the lock is of another model.
    """
    path = lock_path(project, model)
    if not path.is_file():
        return None
    lock = parse_export_lock(path.read_text(encoding="utf-8", errors="replace"), str(path.relative_to(project.root)))
    if lock.model != model:
        raise ExportError(f"{path} is the lock of {lock.model!r}", tip=f"make it anew: {relock_command(model)}")
    return lock


def write_lock(project: Project, lock: ExportLock) -> Path:
    """Write a lock beside its spec."""
    path = lock_path(project, lock.model)
    files.write_atomically(path, render_export_lock(lock))
    return path


def digest_of(value: Any) -> str:
    """Return the SHA-256 of any JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def export_digest(export: ExportSpec) -> str:
    """Return the digest of an export block without its weights, whose content is recorded separately.

    Defaults are left out, so that a key of a later release does not invalidate every lock.
    """
    return digest_of(export.model_dump(exclude={"weights", "strip_prefix"}, exclude_defaults=True))


def misfits(lock: ExportLock, now: Mapping[str, str]) -> list[str]:
    """Return what has changed since a lock was made; empty if it fits. The weights are compared elsewhere.

    Args:
        lock: the lock.
        now: digests by the names of ``Fits``: ``export``, ``recipe``, ``images``.
    """
    names = {"export": "the spec's export block", "recipe": "the recipe", "images": "the images"}
    found = [f"{what} changed" for key, what in names.items() if getattr(lock.fits, key) != now[key]]
    here = versions(lock.form)
    for name, locked in lock.fits.packages.items():
        if _minor(locked) != _minor(here.get(name, "")):
            found.append(f"{name} is {here.get(name, 'not installed')}, the lock was made with {locked}")
    return found


def require_fit(lock: ExportLock, now: Mapping[str, str]) -> None:
    """Refuse a lock that does not fit any more.

    Raises:
        ExportError: inputs have changed; the message lists all of them, with the command to type.
    """
    found = misfits(lock, now)
    if found:
        raise ExportError(
            f"the lock of {lock.model} no longer fits: {'; '.join(found)}",
            tip=f"measure again: {relock_command(lock.model)}",
        )


def fits(now: Mapping[str, str], weights: dict[str, Any], lock_form: Any) -> Fits:
    """Return the inputs of a new lock."""
    return Fits(
        export=now["export"],
        recipe=now["recipe"],
        images=now["images"],
        weights=weights,
        packages=versions(lock_form),
    )


def _minor(version: str) -> list[str]:
    """Return the first two parts of a version: patch releases do not invalidate measurements."""
    return version.partition("+")[0].split(".")[:2]
