"""The text of a request, judged before any work is done on it."""

from __future__ import annotations

from item_errors import TooLarge, Unusable
from model_request import Request

# Some forty pages: far more than the models here read, and cut into words in less than a second.
MAX_CHARACTERS = 100_000


def read_text(request: Request, max_characters: int) -> str:
    """Return the text of a request.

    Raises:
        ItemError: 400 not UTF-8; 413 longer than ``max_characters``; 415 not text; 422 blank.
    """
    payload = request.payload
    # No character takes more than four bytes: what is far too long is not even decoded.
    if isinstance(payload, bytes | bytearray) and len(payload) > 4 * max_characters:
        raise TooLarge(f"the text has {len(payload)} bytes, too many for max_characters ({max_characters})")
    text = request.as_text()
    if len(text) > max_characters:
        raise TooLarge(f"the text has {len(text)} characters, more than max_characters ({max_characters})")
    if not text.strip():
        raise Unusable("the text is blank")
    return text
