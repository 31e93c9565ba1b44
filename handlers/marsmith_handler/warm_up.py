"""Warm-up: runs every batch size before the first request, because TorchScript and libraries prepare each of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

# TorchScript records shapes on the first run and specialises on the second; the third runs the specialised code.
RUNS = 3
ALL_SIZES_UP_TO = 32


def warm_up(infer: Callable[[list[Any]], Any], item: Any, batch_size: int, limit_s: float) -> None:
    """Infer batches of copies of ``item``, of every size from the largest down, for about ``limit_s`` seconds."""
    end = time.monotonic() + limit_s
    for size in sizes(batch_size):
        for _ in range(RUNS):
            infer([item] * size)
        if time.monotonic() > end:
            logger.warning("warming up ended at batch size %d of %d, after %g s", size, batch_size, limit_s)
            return


def sizes(batch_size: int) -> list[int]:
    """Return the batch sizes to warm up, largest first: every one, or beyond 32 the powers of two and the largest."""
    if batch_size <= ALL_SIZES_UP_TO:
        return list(range(batch_size, 0, -1))
    powers = {2**exponent for exponent in range(batch_size.bit_length())}
    return sorted(powers | {batch_size}, reverse=True)
