"""Copy with digests: every source is read once, and its SHA-256 is computed in a second thread."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from marsmith.errors import BuildError

CHUNK_BYTES = 1 << 20
# One chunk is read and written while another is hashed; further chunks balance their speeds.
_BUFFERS = 8


@dataclass(frozen=True)
class Content:
    """The copied content: its size in bytes, its CRC-32, and its SHA-256 in hex."""

    size: int
    crc: int
    sha256: str


class Copier:
    """Copies sources in constant memory. A context manager, because it has a thread for hashing.

    Args:
        on_bytes: called with the size of every copied chunk.
    """

    def __init__(self, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._on_bytes = on_bytes
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._buffers = deque(bytearray(CHUNK_BYTES) for _ in range(_BUFFERS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hasher.shutdown()

    def copy(self, name: str, source: BinaryIO, size: int, write: Callable[[memoryview], object]) -> Content:
        """Read ``size`` bytes, pass every chunk to ``write``, and return the content's description.

        Raises:
            BuildError: ``source``, the content of the member ``name``, has another size or cannot be read.
        """
        digest = hashlib.sha256()
        done = crc = 0
        hashing: deque[Future[None]] = deque()
        # Read one more byte, to detect a source that grew.
        while chunk := self._read(source, size + 1 - done):
            hashing.append(self._hasher.submit(digest.update, chunk))
            crc = zlib.crc32(chunk, crc)
            write(chunk)
            done += len(chunk)
            self._on_bytes(len(chunk))
            # A buffer is reused only after its digest has been computed.
            if len(hashing) == _BUFFERS:
                hashing.popleft().result()
        for future in hashing:
            future.result()
        if done != size:
            raise BuildError(
                f"{name}: its source changed while it was read: {done:,} bytes read, not {size:,}",
                tip="build again when nothing writes to it",
            )
        return Content(size, crc, digest.hexdigest())

    def _read(self, source: BinaryIO, most: int) -> memoryview:
        buffer = memoryview(self._buffers[0])[:most]
        self._buffers.rotate(-1)
        try:
            count = cast("io.RawIOBase", source).readinto(buffer)
        except OSError as error:
            raise BuildError(f"{getattr(source, 'name', 'a source')}: cannot be read: {error.strerror}") from None
        return buffer[: count or 0]


def open_source(source: Path | bytes) -> BinaryIO:
    """Open a member's source for reading.

    Raises:
        BuildError: the file cannot be opened.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return cast("BinaryIO", source.open("rb", buffering=0))
    except OSError as error:
        raise BuildError(f"{source}: cannot be read: {error.strerror}") from None
