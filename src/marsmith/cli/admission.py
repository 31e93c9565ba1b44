"""Admission of the archives that verbs run, with warnings on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import note, printable

if TYPE_CHECKING:
    from marsmith.archive import Archive


def admit_here(path: Path) -> Archive:
    """Admit an archive by the policy of the project of the working folder, with its warnings on stderr.

    Raises:
        UsageError: the archive does not exist.
        ArchiveError: it does not match its digests, or the policy does not admit it.
    """
    from marsmith.archive.admit import admit
    from marsmith.config.project_settings import policy_here
    from marsmith.errors import UsageError

    if not path.exists():
        raise UsageError(f"no archive {path}")
    admitted = admit(path, policy_here())
    for warning in admitted.warnings:
        note(printable(warning))
    return admitted.archive
