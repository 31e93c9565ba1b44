"""How verbs admit the archives that they run, and say what nobody has proved about them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.cli.output import note, printable

if TYPE_CHECKING:
    from marsmith.archive import Archive


def admit_here(path: Path) -> Archive:
    """Admit an archive as the project of the working folder says, with its warnings on stderr.

    Raises:
        UsageError: there is no such archive.
        ArchiveError: it does not hold, or the policy does not admit it.
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
