"""The ``.mar`` file: read, write, verify, sign.

``Archive`` is the content of a file. A file is written from a ``Manifest`` and ``Member`` objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.archive.admit import Policy
    from marsmith.archive.manifest import Manifest
    from marsmith.archive.members import Member
    from marsmith.archive.read import Archive
    from marsmith.archive.write import write_archive

__all__ = ["Archive", "Manifest", "Member", "Policy", "write_archive"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Archive": "marsmith.archive.read",
        "Manifest": "marsmith.archive.manifest",
        "Member": "marsmith.archive.members",
        "Policy": "marsmith.archive.admit",
        "write_archive": "marsmith.archive.write",
    },
)
