"""The text of a request, checked before it is processed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from marsmith_handler.errors import ContentTooLarge, ItemError, UnprocessableContent
from marsmith_handler.request import Request, check_total

# About forty pages: much more than these models read.
MAX_CHARACTERS = 100_000
# So many characters of any kind are split into words in a second.
MAX_REQUEST_CHARACTERS = 500_000
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # UTF-8 bytes that do not begin a character


@dataclass(frozen=True)
class TextLimits:
    """Limits on the text of one request.

    Attributes:
        characters: maximum for each text; the setting ``max_characters``.
        together: maximum for all texts; the setting ``max_request_characters``.
    """

    characters: int
    together: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> TextLimits:
        """Read the limits from the block ``handler``; raises ValueError or TypeError if one is not a number."""
        characters = int(config.get("max_characters", MAX_CHARACTERS))
        most = max(MAX_REQUEST_CHARACTERS, characters)
        return cls(characters, int(config.get("max_request_characters", most)))

    def check_together(self, requests: Sequence[Request]) -> None:
        """Raise ContentTooLarge if texts are too long together."""
        check_total(map(_characters, requests), self.together, "characters", "max_request_characters")


def read_text(request: Request, max_characters: int) -> str:
    """Return the text of a request.

    Raises:
        ItemError: 400 not UTF-8; 413 longer than ``max_characters``; 415 not text; 422 blank.
    """
    payload = request.payload
    # A character has at most four bytes: a text that is far too long is not decoded.
    if isinstance(payload, bytes | bytearray) and len(payload) > 4 * max_characters:
        raise ContentTooLarge(f"the text has {len(payload)} bytes, too many for max_characters ({max_characters})")
    text = request.as_text()
    if len(text) > max_characters:
        raise ContentTooLarge(f"the text has {len(text)} characters, more than max_characters ({max_characters})")
    if not text.strip():
        raise UnprocessableContent("the text is blank")
    return text


def _characters(request: Request) -> int:
    """Return the number of characters of a text; 0 for anything else: reading it raises the error."""
    with suppress(ItemError):
        payload = request.payload
        if isinstance(payload, bytes | bytearray):
            return len(payload.translate(None, _CONTINUATIONS))
        if isinstance(payload, str):
            return len(payload)
    return 0
