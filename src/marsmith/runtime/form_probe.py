"""Check that a handler fits its serialized file, if a spec has no example."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from marsmith.errors import HandlerError
from marsmith.runtime.runner import Request, Runner, RunnerReply

# Start of the message of a BaseHandler if the model, or a later step, fails on an item that was decoded.
_BEHIND_DECODE = ("infer failed", "encode failed")
_SIDE = 64
# Length of an axis of any length.
_LENGTH = 4
_MOST_NUMBERS = 100_000


def check_takes_form(runner: Runner, handler: str, report: Mapping[str, Any]) -> None:
    """Send a photo, a text and numbers; most handlers accept one of them.

    Args:
        runner: runner that has loaded the handler.
        handler: name of the handler.
        report: report of the export, with its inputs.

    Raises:
        HandlerError: the handler accepts an input but then fails with the serialized file, and answers no other input.
    """
    replies = {what: runner.run([request])[0] for what, request in _requests(report["inputs"])}
    if any(reply.status < 400 for reply in replies.values()):
        return
    for what, reply in replies.items():
        message = _message(reply)
        if message.startswith(_BEHIND_DECODE):
            raise HandlerError(
                f"the handler {handler} takes {what}, and cannot give it to what was exported, which takes "
                f"{_shown(report['inputs'])}: {message}",
                tip="export what this handler feeds (a TensorRecipe, docs/reference/recipes.md), or take a handler for "
                "this export; if both are right, name a request that it answers under examples in the spec",
            )


def _requests(inputs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Request]]:
    yield "a photo", Request(photo(), "image/png")
    yield "a text", Request(b"A cat sleeps on the sofa.", "text/plain")
    shapes = [[_LENGTH if length is None else length for length in one["shape"][1:]] for one in inputs]
    if sum(map(prod, shapes)) <= _MOST_NUMBERS:
        numbers = {one["name"]: _zeros(shape) for one, shape in zip(inputs, shapes, strict=True)}
        yield "numbers", Request(json.dumps(numbers).encode(), "application/json")


def photo() -> bytes:
    """Return a small grey PNG."""
    row = b"\x00" + b"\x7f" * (3 * _SIDE)
    header = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(row * _SIDE)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _zeros(shape: Sequence[int]) -> Any:
    return [_zeros(shape[1:]) for _ in range(shape[0])] if shape else 0


def _message(reply: RunnerReply) -> str:
    try:
        body = json.loads(reply.body)
    except ValueError:
        return ""
    return str(body.get("message", "")) if isinstance(body, dict) and reply.status >= 500 else ""


def _shown(inputs: Sequence[Mapping[str, Any]]) -> str:
    shapes = (", ".join("any" if length is None else str(length) for length in one["shape"]) for one in inputs)
    return " and ".join(f"{one['name']} {one['dtype']} ({shape})" for one, shape in zip(inputs, shapes, strict=True))
