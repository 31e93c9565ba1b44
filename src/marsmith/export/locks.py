"""Locks on disk: read, compared with what is there now, and written whole or not at all."""

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
    """Return where the lock of a model lies: beside its spec."""
    return project.specs / f"{model}{SUFFIX}"


def relock_command(model: str) -> str:
    """Return what to type to make a lock anew."""
    return f"marsmith export {model} --relock"


def read_lock(project: Project, model: str) -> ExportLock | None:
    """Read the lock of a model; None where there is none.

    Raises:
        FormatError: it is damaged.
        ExportError: it is another model's.
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
    """Return the digest of what an export block sets, without its weights, whose content is recorded by itself.

    Defaults are left out, so that a key that a later release adds does not make every lock unfit.
    """
    return digest_of(export.model_dump(exclude={"weights", "strip_prefix"}, exclude_defaults=True))


def misfits(lock: ExportLock, now: Mapping[str, str]) -> list[str]:
    """Say what has changed since a lock was made; nothing where it still fits. The weights are compared elsewhere.

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
    """Refuse a lock that no longer fits.

    Raises:
        ExportError: with everything that has changed, and what to type.
    """
    found = misfits(lock, now)
    if found:
        raise ExportError(
            f"the lock of {lock.model} no longer fits: {'; '.join(found)}",
            tip=f"measure again: {relock_command(lock.model)}",
        )


def fits(now: Mapping[str, str], weights: dict[str, Any], lock_form: Any) -> Fits:
    """Return what a new lock is made for."""
    return Fits(
        export=now["export"],
        recipe=now["recipe"],
        images=now["images"],
        weights=weights,
        packages=versions(lock_form),
    )


def _minor(version: str) -> list[str]:
    """Return the first two parts of a version: patches keep what was measured."""
    return version.partition("+")[0].split(".")[:2]
