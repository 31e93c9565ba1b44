"""What drift is watched by, without labels: a few numbers and classes of each item, by name.

They are computed in the thread of the prediction log, for logged requests only. Names end in a unit if they have one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

Watched = dict[str, float | str]

# Side of the part of a picture that blur is computed on, and pixels that brightness is computed on at most, roughly.
_SIDE = 256
# Luma of RGB, ITU-R BT.601.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_LONGEST_CLASS = 200
_DIRECTIONS = 4


def of_classes(reply: Any) -> Watched:
    """Describe a classifier's reply, an object of classes and probabilities; empty for any other reply.

    ``class`` is the most probable one, ``confidence`` its probability, ``margin`` how far the second is behind.
    ``entropy``, in nats, takes the classes that the reply leaves out as one.
    """
    if not isinstance(reply, Mapping) or not reply or not all(map(_is_probability, reply.values())):
        return {}
    top = max(reply, key=lambda name: (reply[name], name))
    values = sorted(reply.values(), reverse=True)
    second = values[1] if len(values) > 1 else 0.0
    rest = max(0.0, 1.0 - sum(values))
    entropy = -sum(value * math.log(value) for value in (*values, rest) if value > 0)
    return {
        "class": str(top)[:_LONGEST_CLASS],
        "confidence": float(values[0]),
        "margin": float(values[0] - second),
        "entropy": max(0.0, entropy),
    }


def of_numbers(array: np.ndarray[Any, Any], prefix: str = "") -> Watched:
    """Describe an array: ``mean`` and ``std`` of the finite numbers, and ``missing``, the share of the others."""
    if array.size == 0 or array.dtype.kind not in "biuf":
        return {}
    finite = array if array.dtype.kind != "f" else array[np.isfinite(array)]
    found = {f"{prefix}missing": 1 - finite.size / array.size}
    if finite.size:
        found[f"{prefix}mean"] = float(np.mean(finite, dtype=np.float64))
        found[f"{prefix}std"] = float(np.std(finite, dtype=np.float64))
    return {**found}


def of_picture(pixels: np.ndarray[Any, Any]) -> Watched:
    """Describe decoded pixels, uint8 (3, H, W), RGB.

    ``brightness`` and ``contrast`` are mean and standard deviation of the luma, 0 to 1. ``blur`` is the logarithm of
    the variance of its Laplacian in the centre: the less, the more blurred (J. L. Pech-Pacheco et al., ICPR 2000).
    """
    _, height, width = pixels.shape
    step = max(1, max(height, width) // _SIDE)
    luma = np.tensordot(_LUMA, pixels[:, ::step, ::step].astype(np.float32), 1) / 255
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    centre = pixels[:, top : top + _SIDE, left : left + _SIDE].astype(np.float32)
    sharp = luma if step == 1 else np.tensordot(_LUMA, centre, 1) / 255
    found: Watched = {"brightness": float(luma.mean()), "contrast": float(luma.std())}
    if min(sharp.shape) >= 3:
        inner = sharp[1:-1, 1:-1]
        laplacian = sharp[:-2, 1:-1] + sharp[2:, 1:-1] + sharp[1:-1, :-2] + sharp[1:-1, 2:] - 4 * inner
        found["blur"] = math.log(float(laplacian.var()) + 1e-9)
    return found


def of_embedding(numbers: Any) -> Watched:
    """Describe where an embedding lies: ``direction_1`` and so on, its cosine distances to four fixed directions.

    If the mean of embeddings moves, so does the mean of their distance to nearly any direction (random projection).
    """
    vector = np.asarray(numbers, dtype=np.float64)
    length = float(np.linalg.norm(vector))
    if vector.ndim != 1 or not length:
        return {}
    cosines = _directions(vector.size) @ vector / (length * math.sqrt(vector.size))
    return {f"direction_{number}": 1 - float(cosine) for number, cosine in enumerate(cosines, 1)}


@cache
def _directions(size: int) -> np.ndarray[Any, Any]:
    """Return rows of 1 and -1, the same at all times and places."""
    rows = [hashlib.shake_256(f"direction {number}".encode()).digest((size + 7) // 8) for number in range(_DIRECTIONS)]
    bits = np.stack([np.unpackbits(np.frombuffer(row, np.uint8))[:size] for row in rows])
    return bits.astype(np.float64) * 2 - 1


def cleaned(watched: Mapping[str, Any]) -> Watched:
    """Return the finite numbers, rounded to seven digits, and the texts."""
    found: Watched = {}
    for name, value in watched.items():
        if isinstance(value, str):
            found[str(name)] = value[:_LONGEST_CLASS]
        elif math.isfinite(value):
            found[str(name)] = float(f"{float(value):.7g}")
    return found


def _is_probability(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
