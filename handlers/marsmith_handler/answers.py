"""Comparison of a reply with the validated one: for workers, ``verify --replay``, ``serve`` and ``deploy``.

JSON is compared value by value, and numbers within a tolerance. The same holds for numbers in text, ``.npy`` and
safetensors. Images are compared by their pixels. Other bytes are compared by their digest.

The file is in ``handlers/``, because a worker's Python has no marsmith; ``marsmith/archive/`` has a link to it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

# Default tolerance of a number in a reply, by the precision of both: kernels of other processors and other batch sizes
# round differently, and more so in a coarser precision.
EXAMPLE_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.05, "int8": 0.1}
# Tolerance if only one of the replies was computed in that precision and the other in float32, in units of probability.
# An archive that measured it has its own value, ``engine_tolerance``.
FALLBACK_TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1, "int8": 0.25}

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_NPY = b"\x93NUMPY"
_IMAGE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*", re.DOTALL)
_SAFETENSORS = {"BOOL": "?", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
_SAFETENSORS |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}


class ValidatedReply(Protocol):
    """What an archive records of an example's reply."""

    @property
    def status(self) -> int:
        """HTTP status."""

    @property
    def reply(self) -> Any:
        """The reply, if it is JSON."""

    @property
    def reply_sha256(self) -> str | None:
        """Digest of the reply's bytes, if it is not JSON."""

    @property
    def tolerance(self) -> float:
        """Maximum difference of any number."""

    @property
    def recorded(self) -> bytes | None:
        """The reply's bytes, if the archive holds them."""


@dataclass(frozen=True)
class Allowance:
    """Additional tolerance that depends on what computes the replies; see ``allowance``.

    Attributes:
        tolerance: minimum tolerance of numbers, whatever the example's own.
        same_bytes: whether bytes that cannot be compared must be equal.
    """

    tolerance: float = 0.0
    same_bytes: bool = True


@dataclass(frozen=True)
class Judgement:
    """Result of a comparison.

    Attributes:
        problem: description of the difference; None if there is none.
        unproved: why the replies could not be compared; None if they could.
    """

    problem: str | None = None
    unproved: str | None = None


Facts = Callable[[], Mapping[str, Any]]


def allowance(settings: Mapping[str, Any], computed: Mapping[str, Any]) -> Allowance:
    """Return the additional tolerance.

    Args:
        settings: block ``handler`` of model-config.yaml, which describes the validation of the archive.
        computed: what the worker reports about itself: ``precision`` and ``engine_fell_back``; empty if it reports
            nothing.
    """
    if computed.get("engine_fell_back"):
        own = settings.get("engine_tolerance")
        usual = FALLBACK_TOLERANCE.get(str(settings.get("precision")), FALLBACK_TOLERANCE["float32"])
        return Allowance(float(own) if isinstance(own, int | float) else usual, same_bytes=False)
    return Allowance(same_bytes=computed.get("precision", "float32") == "float32")


def may_compute_otherwise(settings: Mapping[str, Any]) -> bool:
    """Return whether other machines may run an archive with these settings in another engine or precision."""
    return (settings.get("engine", "torch"), settings.get("precision", "float32")) != ("torch", "float32")


def judge(expected: ValidatedReply, status: int, body: bytes, settings: Mapping[str, Any], facts: Facts) -> Judgement:
    """Compare a reply with the validated one.

    Args:
        expected: validated reply in the archive.
        status: HTTP status of the reply.
        body: body of the reply.
        settings: the archive's block ``handler``.
        facts: asks what the worker computes in, see ``allowance``; called only if it matters.
    """
    strictly = compare(expected, status, body, Allowance())
    if strictly == Judgement() or status != expected.status or not may_compute_otherwise(settings):
        return strictly
    return compare(expected, status, body, allowance(settings, facts()))


def compare(expected: ValidatedReply, status: int, body: bytes, allowed: Allowance) -> Judgement:
    """Compare a reply with the validated one, with an additional tolerance."""
    if status != expected.status:
        return Judgement(f"status {status} instead of {expected.status}: {_shown(body)}")
    tolerance = max(expected.tolerance, allowed.tolerance)
    if expected.reply_sha256 is not None:
        return _judge_bytes(expected.reply_sha256, expected.recorded, body, tolerance, same=allowed.same_bytes)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return Judgement(f"the reply is no longer JSON: {_shown(body)}")
    return Judgement(difference(expected.reply, value, tolerance))


# JSON ---------------------------------------------------------------------------------------------------------------


def difference(expected: Any, actual: Any, tolerance: float, path: str = "reply") -> str | None:
    """Describe the first difference between two JSON values; None if they agree within ``tolerance``."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return None if expected is actual else f"{path}: {actual!r} instead of {expected!r}"
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        near = math.isclose(expected, actual, rel_tol=0, abs_tol=tolerance)
        return None if near else f"{path}: {actual!r} instead of {expected!r} (tolerance {tolerance:g})"
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _dict_difference(expected, actual, tolerance, path)
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{path}: {len(actual)} items instead of {len(expected)}"
        found = (
            difference(e, a, tolerance, f"{path}[{i}]") for i, (e, a) in enumerate(zip(expected, actual, strict=True))
        )
        return next((text for text in found if text), None)
    return None if expected == actual else f"{path}: {actual!r} instead of {expected!r}"


def _dict_difference(expected: dict[str, Any], actual: dict[str, Any], tolerance: float, path: str) -> str | None:
    """Compare two objects; the order of their keys has no meaning in JSON."""
    missing, added = expected.keys() - actual.keys(), actual.keys() - expected.keys()
    if (missing or added) and not _are_best_few(expected, actual):
        parts = [f"lacks {sorted(missing)}" if missing else "", f"has unexpected {sorted(added)}" if added else ""]
        return f"{path} {' and '.join(part for part in parts if part)}"
    if missing or added:
        expected, actual = _with_lowest(expected, actual), _with_lowest(actual, expected)
    found = (difference(expected[key], actual[key], tolerance, f"{path}[{key!r}]") for key in expected)
    return next((text for text in found if text), None)


def _are_best_few(expected: dict[str, Any], actual: dict[str, Any]) -> bool:
    """Return whether these may be the best few of many classes, with the same best class.

    Another processor or engine may exchange the last of the few with the next one.
    """
    flat = len(expected) == len(actual) and all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in [*expected.values(), *actual.values()]
    )
    return (
        flat and max(expected, key=expected.__getitem__) in actual and max(actual, key=actual.__getitem__) in expected
    )


def _with_lowest(reply: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Add the keys that only ``other`` has, with their maximum possible value here: the lowest number in the reply."""
    lowest = min(reply.values())
    return {**{key: min(lowest, other[key]) for key in other.keys() - reply.keys()}, **reply}


# Bytes --------------------------------------------------------------------------------------------------------------


def can_be_compared(body: bytes) -> bool:
    """Return whether bytes can be compared by more than their digest."""
    return _read(body) is not None


def _judge_bytes(sha256: str, recorded: bytes | None, body: bytes, tolerance: float, *, same: bool) -> Judgement:
    if hashlib.sha256(body).hexdigest() == sha256:
        return Judgement()
    other = f"the reply's {len(body)} bytes are not those that were validated"
    wanted = _read(recorded) if recorded is not None else None
    if wanted is None:
        why = "of which only the digest is known" if recorded is None else "and they cannot be compared here"
        return Judgement(other) if same and recorded is None else Judgement(unproved=f"{other}, {why}")
    given = _read(body)
    if given is None or given[0] != wanted[0]:
        return Judgement(f"{other}, and no longer {wanted[0]}: {_shown(body)}")
    return Judgement(_COMPARE[wanted[0]](wanted[1], given[1], tolerance))


def _read(body: bytes) -> tuple[str, Any] | None:
    """Return the kind and the content of bytes; None for a kind that cannot be compared here."""
    try:
        if body.startswith(_NPY):
            return "an array", {"array": _numpy().load(BytesIO(body), allow_pickle=False)}
        if _IMAGE.match(body):
            return "an image", _frames(body)
        if body[8:9] == b"{":
            return "tensors", _tensors(body)
        text = body.decode("utf-8")
    except Exception:  # Decoders raise any kind of exception for damaged data.
        return None
    return None if "\0" in text else ("text", text)


def _frames(body: bytes) -> dict[str, Any]:
    """Return the pixels of each frame of an image; palettes are resolved to colours."""
    image = importlib.import_module("PIL.Image").open(BytesIO(body))
    found = {}
    for number in range(getattr(image, "n_frames", 1)):
        image.seek(number)
        found[f"frame {number}"] = _numpy().asarray(image.convert("RGBA") if image.mode == "P" else image)
    return found


def _tensors(body: bytes) -> dict[str, Any]:
    """Return the tensors of a safetensors file."""
    start = 8 + struct.unpack_from("<Q", body)[0]
    found = {}
    for name, entry in json.loads(body[8:start]).items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in entry["data_offsets"])
            flat = _numpy().frombuffer(body[begin:end], dtype=_SAFETENSORS[entry["dtype"]])
            found[name] = flat.reshape(entry["shape"])
    return found


def _text_difference(expected: str, actual: str, tolerance: float) -> str | None:
    if _NUMBER.split(expected) != _NUMBER.split(actual):
        return f"the reply is {actual[:200]!r} instead of {expected[:200]!r}"
    one, other = ([float(number) for number in _NUMBER.findall(text)] for text in (expected, actual))
    return difference(one, other, tolerance, "numbers in the reply")


def _arrays_difference(expected: Mapping[str, Any], actual: Mapping[str, Any], tolerance: float) -> str | None:
    if (found := _other_form(expected, actual)) is not None:
        return found
    np = _numpy()
    for name, one in expected.items():
        other = actual[name]
        with np.errstate(invalid="ignore"):
            gap = np.abs(one.astype("f8") - other.astype("f8"))
        # Compared for equality first: not every 64-bit integer is a double. Only NaN differs from itself.
        gap[(one == other) | ((one != one) & (other != other))] = 0.0
        largest = float(gap.max(initial=0.0))
        if not largest <= tolerance:
            return f"{name} in the reply is off by {largest:.3g} (tolerance {tolerance:g})"
    return None


def _pixels_difference(expected: Mapping[str, Any], actual: Mapping[str, Any], tolerance: float) -> str | None:
    """Allow a share ``tolerance`` of the pixels to differ by more than the share ``tolerance`` of the full range."""
    if (found := _other_form(expected, actual)) is not None:
        return found
    np = _numpy()
    for name, one in expected.items():
        full = float(np.iinfo(one.dtype).max) if one.dtype.kind in "iu" else 1.0
        off = np.abs(one.astype("f8") - actual[name].astype("f8")) > tolerance * full
        share = float((off.any(axis=2) if off.ndim == 3 else off).mean())
        if share > tolerance:
            return f"{name} of the reply differs in {share:.1%} of its pixels (tolerance {tolerance:g})"
    return None


def _other_form(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str | None:
    one, other = (
        {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items()} for arrays in (expected, actual)
    )
    return None if one == other else f"the reply holds {other} instead of {one}"


_COMPARE: dict[str, Callable[[Any, Any, float], str | None]] = {
    "text": _text_difference,
    "an array": _arrays_difference,
    "tensors": _arrays_difference,
    "an image": _pixels_difference,
}


def _numpy() -> Any:
    # An import statement would add numpy and Pillow to the recorded environment of each archive.
    return importlib.import_module("numpy")


def _shown(body: bytes) -> str:
    return " ".join(body[:200].decode("utf-8", "replace").split())
