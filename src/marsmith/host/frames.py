"""Frames between the front and a worker: a JSON head, and blocks of bytes that are not copied into it.

A frame is the length of its head (4 bytes, big-endian), the head, and the blocks. The head is an object; its key
``sizes`` holds the lengths of the blocks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_LENGTH = struct.Struct("!I")
# A head holds the headers of one batch; one that is larger is no frame.
LARGEST_HEAD = 1 << 28


class ByteSource(Protocol):
    """Source of bytes that blocks."""

    def read(self, size: int, /) -> bytes:
        """Return ``size`` bytes; fewer only at the end."""
        ...


@dataclass(frozen=True)
class Frame:
    """One message: ``kind`` and the rest of its head, and its blocks."""

    head: Mapping[str, Any]
    blocks: tuple[bytes, ...] = ()

    @property
    def kind(self) -> str:
        """What the message is."""
        return str(self.head["kind"])


def encode(kind: str, head: Mapping[str, Any], blocks: Sequence[bytes | bytearray] = ()) -> list[bytes | bytearray]:
    """Return the parts of a frame, in their order."""
    text = json.dumps({"kind": kind, **head, "sizes": list(map(len, blocks))}, separators=(",", ":")).encode()
    return [_LENGTH.pack(len(text)), text, *blocks]


def read_frame(source: ByteSource) -> Frame | None:
    """Read one frame; None at the end of the source, even in the middle of a frame."""
    start = source.read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(start)
    text = source.read(length)
    if len(text) < length:
        return None
    head = json.loads(text)
    blocks = tuple(source.read(size) for size in head["sizes"])
    whole = all(len(block) == size for block, size in zip(blocks, head["sizes"], strict=True))
    return Frame(head, blocks) if whole else None


class FrameBuffer:
    """Collects bytes as they arrive, and yields the frames that are complete."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._head: dict[str, Any] | None = None
        self._needed = _LENGTH.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add bytes and yield each frame that they complete.

        Raises:
            ValueError: the bytes are not a frame.
        """
        self._data += data
        while len(self._data) >= self._needed:
            if self._head is None and self._needed == _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._data)
                if length > LARGEST_HEAD:
                    raise ValueError(f"a head of {length} bytes")
                self._needed += length
            elif self._head is None:
                self._head = json.loads(bytes(self._data[_LENGTH.size : self._needed]))
                del self._data[: self._needed]
                self._needed = sum(self._head["sizes"])
            if self._head is not None and len(self._data) >= self._needed:
                yield self._take(self._head)

    def _take(self, head: dict[str, Any]) -> Frame:
        blocks, at = [], 0
        for size in head["sizes"]:
            blocks.append(bytes(self._data[at : at + size]))
            at += size
        del self._data[:at]
        self._head, self._needed = None, _LENGTH.size
        return Frame(head, tuple(blocks))
