"""Bounded JSON: the values are counted in the text before it is parsed."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from marsmith_handler.errors import BadRequest, ContentTooLarge

# Of numbers; texts, keys, lists and objects count twice, because they take about twice as much memory. This is at most
# 100 MB and half a second. 16 MiB of floats fit, as json.dumps writes them: 20 bytes each.
MAX_VALUES = 1_500_000

_CHUNK = 1 << 20  # bytes
_COUNTED = np.zeros(256, dtype=bool)
_COUNTED[list(b",:[{")] = True


def parse_json(text: bytes | bytearray | str) -> Any:
    """Parse JSON.

    Raises:
        ItemError: 400 not JSON, or nested too deeply; 413 more than ``MAX_VALUES`` values.
    """
    try:
        # The encoding that json.loads would find by itself.
        text = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        if not holds_at_most(text, MAX_VALUES):
            raise ContentTooLarge(
                f"JSON with more than {MAX_VALUES} values, where texts, keys, lists and objects count twice; "
                "large tensors go as .npy, safetensors or binary data of KServe v2"
            )
        with _without_collection():
            return json.loads(text)
    except RecursionError:
        raise BadRequest("JSON nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"not valid JSON: {error}") from None


def holds_at_most(text: str, limit: int) -> bool:
    """Return whether JSON has at most ``limit`` values, without parsing; for invalid JSON the answer has no meaning."""
    # A quick count first, which includes marks inside of texts. Only if it is too high is the exact count needed.
    rough = 1 + sum(text.count(mark) for mark in ",:[{") + text.count('"') // 2
    return rough <= limit or 1 + _marks_outside_texts(text) <= limit


@contextmanager
def _without_collection() -> Iterator[None]:
    # JSON has no cycles, and the search for cycles among so many new objects takes several times as long as parsing.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _marks_outside_texts(text: str) -> int:
    """Count commas, colons, opening brackets and texts, without the content of texts."""
    # Remove escaped characters with their backslashes, from the left. Each remaining quote begins or ends a text.
    body = text.encode("utf-8", "surrogatepass").replace(b"\\\\", b"..").replace(b'\\"', b"..")
    found, inside = 0, False
    for start in range(0, len(body), _CHUNK):
        chunk = np.frombuffer(body, np.uint8, count=min(_CHUNK, len(body) - start), offset=start)
        quotes = chunk == ord('"')
        # Sums modulo 256 keep the necessary bit: whether the number of quotes so far is odd.
        within = (np.cumsum(quotes, dtype=np.uint8) + np.uint8(inside)) & 1 == 1
        found += int(np.count_nonzero(_COUNTED[chunk] & ~within)) + int(np.count_nonzero(quotes & within))
        inside = bool(within[-1])
    return found
