"""The text of a request, judged before any work is done on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from marsmith_handler.errors import ContentTooLarge, ItemError, UnprocessableContent
from marsmith_handler.request import Request, check_total

# Some forty pages: far more than the models here read.
MAX_CHARACTERS = 100_000
# Whatever characters they are, so many are cut into words in a second.
MAX_REQUEST_CHARACTERS = 500_000
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # the bytes of UTF-8 that begin no character


@dataclass(frozen=True)
class TextLimits:
    """How much text one request may hold.

    Attributes:
        characters: of each text; the setting ``max_characters``.
        together: characters of all texts; the setting ``max_request_characters``.
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
        """Refuse texts that are too long together; raises ContentTooLarge."""
        check_total(map(_characters, requests), self.together, "characters", "max_request_characters")


def read_text(request: Request, max_characters: int) -> str:
    """Return the text of a request.

    Raises:
        ItemError: 400 not UTF-8; 413 longer than ``max_characters``; 415 not text; 422 blank.
    """
    payload = request.payload
    # No character takes more than four bytes: what is far too long is not even decoded.
    if isinstance(payload, bytes | bytearray) and len(payload) > 4 * max_characters:
        raise ContentTooLarge(f"the text has {len(payload)} bytes, too many for max_characters ({max_characters})")
    text = request.as_text()
    if len(text) > max_characters:
        raise ContentTooLarge(f"the text has {len(text)} characters, more than max_characters ({max_characters})")
    if not text.strip():
        raise UnprocessableContent("the text is blank")
    return text


def _characters(request: Request) -> int:
    """Count the characters of a text; what is not a text has none, and is named when it is read."""
    with suppress(ItemError):
        payload = request.payload
        if isinstance(payload, bytes | bytearray):
            return len(payload.translate(None, _CONTINUATIONS))
        if isinstance(payload, str):
            return len(payload)
    return 0
