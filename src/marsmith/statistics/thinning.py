"""Thinning of observations: the same body, or many in a moment, are not independent evidence."""

from __future__ import annotations

BLOCK_S = 1.0


class Thinning:
    """Keeps at most one observation of each body and of each block of time, within one window."""

    def __init__(self, block_s: float = BLOCK_S) -> None:
        """Begin a window; ``block_s`` is the length of a block in seconds."""
        self._block_s = block_s
        self._bodies: set[str] = set()
        self._block = -1

    def keeps(self, body: str, time_s: float) -> bool:
        """Return whether an observation counts.

        Args:
            body: digest of the body.
            time_s: in seconds since the epoch. Of two that arrive in the wrong order the earlier one does not count.
        """
        block = int(time_s // self._block_s)
        if block <= self._block or body in self._bodies:
            return False
        self._block = block
        self._bodies.add(body)
        return True
