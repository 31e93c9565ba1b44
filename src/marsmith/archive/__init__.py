"""Model archives: building, opening and verifying them.

``Archive`` is the one noun; a ``Manifest`` and ``Member`` objects are what one is built from.
"""

from __future__ import annotations

from marsmith.archive.member import Member
from marsmith.archive.read import Archive
from marsmith.formats.manifest import Manifest

__all__ = ["Archive", "Manifest", "Member"]
