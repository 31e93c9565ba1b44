"""Number of pieces in a file, counted before it is decoded: each piece costs a decoder time and memory.

Pillow and ``wave`` read headers piece by piece in Python. A real file has a few pieces, or some thousands if it is
large. A picture with 16 MB of empty pieces took a worker seven seconds and 580 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

MAX_PIECES = 65_536

_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_JPEG_SCAN = 0xDA
_GIF_EXTENSION, _GIF_IMAGE, _GIF_END = b"!,;"


def in_too_many_pieces(data: memoryview, kind: str) -> bool:
    """Return whether a file of a known kind (``PNG``, ``JPEG``, ``GIF``, ``WAV``) has more than ``MAX_PIECES``."""
    walk = _WALKS.get(kind)
    return walk is not None and sum(1 for _ in islice(walk(data), MAX_PIECES + 1)) > MAX_PIECES


def _png_chunks(data: memoryview) -> Iterator[int]:
    at, kind = 8, b""
    while at + 12 <= len(data) and kind != b"IEND":
        kind = bytes(data[at + 4 : at + 8])
        # Pillow also stops at what is not a chunk.
        if not kind.isalpha():
            return
        yield at
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _wav_chunks(data: memoryview) -> Iterator[int]:
    at = 12
    while at + 8 <= len(data):
        yield at
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2


def _jpeg_segments(data: memoryview) -> Iterator[int]:
    """Yield the segments before the first scan; a byte that belongs to no segment counts as a piece."""
    at = 2
    while at + 4 <= len(data):
        yield at
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):
            at += 1
        elif marker == _JPEG_SCAN:
            return
        elif marker in _JPEG_WITHOUT_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _gif_blocks(data: memoryview) -> Iterator[int]:
    """Yield the extensions before the first picture, and their blocks."""
    at = 13 + (6 << (data[10] & 7) if len(data) > 10 and data[10] & 0x80 else 0)
    while at < len(data) and data[at] not in (_GIF_IMAGE, _GIF_END):
        yield at
        if data[at] != _GIF_EXTENSION:
            at += 1
            continue
        at += 2
        while at < len(data) and data[at]:
            yield at
            at += 1 + data[at]
        at += 1


_WALKS = {"PNG": _png_chunks, "JPEG": _jpeg_segments, "GIF": _gif_blocks, "WAV": _wav_chunks}
