"""Keep freed memory in the worker, because the next batch needs as much again.

glibc returns large blocks to the system at once, and a model's intermediate results are large blocks. So each batch
needs new pages, which the system clears one by one. docs/explanation/handler-benchmark.md has the cost.
"""

from __future__ import annotations

import ctypes
import os

KEPT_BYTES = 256 * 1024 * 1024
# Maximum that an older glibc accepts for the first of the two.
LARGEST_OLD_THRESHOLD = 32 * 1024 * 1024
# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_OWN_CHOICES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> bool:
    """Let glibc keep up to ``kept_bytes`` of freed memory; return whether it does.

    False for another C library, and if the environment already has settings for it.
    """
    if any(name in os.environ for name in _OWN_CHOICES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, kept_bytes) or mallopt(_M_MMAP_THRESHOLD, LARGEST_OLD_THRESHOLD)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, kept_bytes))
