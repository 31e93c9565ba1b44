"""JSON from other programs: every problem is a ValueError."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON; the options are those of ``json.loads``.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or has a number of too many digits.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        # Raised at a depth that depends on the caller's stack, and not a ValueError.
        raise ValueError("nested too deeply") from None
