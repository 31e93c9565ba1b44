"""Batch scoring: one archive over many inputs, resumable, each input exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from marsmith.lazy_names import lazy_names

if TYPE_CHECKING:
    from marsmith.scoring.job import BatchOptions, BatchResult, run_batch

__all__ = ["BatchOptions", "BatchResult", "run_batch"]

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "marsmith.scoring.job"))
