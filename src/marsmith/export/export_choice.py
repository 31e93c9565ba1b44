"""Which form to take, decided from figures alone.

The score of a form is the geometric mean of its images per second at batch size 1 and at the batch size that the spec
serves: a lone request and a full batch count alike. Forms whose scores lie within ``CLOSE`` of the fastest count as
equally fast, and of those the first in the order of ``formats.form.SUPPORTED`` is taken: float32 before coarser
precisions, torch before other engines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from marsmith.config.form import BASE
from marsmith.export.lock import Candidate

CLOSE = 0.03


def scored_sizes(batch_size: int) -> list[int]:
    """Return the batch sizes that the score is taken over."""
    return sorted({1, batch_size})


def score(images_per_second: Mapping[str, float], sizes: Sequence[int]) -> float:
    """Return the geometric mean of the throughput over the batch sizes."""
    return math.prod(images_per_second[str(size)] for size in sizes) ** (1 / len(sizes))


def refuse_slow(candidates: Sequence[Candidate], sizes: Sequence[int]) -> list[Candidate]:
    """Refuse those that are slower than float32 TorchScript in torch, the base, where that was timed."""
    base = next((one for one in candidates if one.what == BASE and one.images_per_second), None)
    if base is None:
        return list(candidates)
    limit = score(base.images_per_second, sizes)
    return [_refused_if_slow(one, limit, sizes) for one in candidates]


def _refused_if_slow(candidate: Candidate, limit: float, sizes: Sequence[int]) -> Candidate:
    if candidate.what == BASE or candidate.verdict != "passed" or not candidate.images_per_second:
        return candidate
    reached = score(candidate.images_per_second, sizes)
    if reached >= limit:
        return candidate
    reason = (
        f"slower than {BASE} on this machine: {reached:.1f} instead of {limit:.1f} images per second, "
        f"{1 - reached / limit:.0%} less; take float32, another engine, or gate.must_be_faster: false"
    )
    return candidate.model_copy(update={"verdict": "refused", "reason": reason})


def choose(candidates: Sequence[Candidate], sizes: Sequence[int]) -> Candidate | None:
    """Return the fastest that passed, in the sense of this module; None where none passed.

    Args:
        candidates: in the order of preference.
        sizes: see ``scored_sizes``.
    """
    passed = [one for one in candidates if one.verdict == "passed"]
    timed = [one for one in passed if one.images_per_second]
    if not timed:
        return passed[0] if passed else None
    best = max(score(one.images_per_second, sizes) for one in timed)
    return next(one for one in timed if score(one.images_per_second, sizes) >= best * (1 - CLOSE))
