"""Memory that the worker has freed stays with it, because the next batch needs as much again.

glibc hands large blocks back to the system at once, and a model's intermediate results are large blocks: each batch
then pays for fresh pages, which the system clears one by one. The page on the handler's
speed says what that costs.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 * 1024 * 1024
# What an older glibc takes at most for the first of the two.
LARGEST_OLD_THRESHOLD = 32 * 1024 * 1024
# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Let glibc keep up to ``kept_bytes`` of freed memory; return whether it does.

    False where the C library is another one, or where the environment has settings for it already.
    """
    if any(name in os.environ for name in _OWN_CHOICES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, kept_bytes) or mallopt(_M_MMAP_THRESHOLD, LARGEST_OLD_THRESHOLD)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, kept_bytes))
