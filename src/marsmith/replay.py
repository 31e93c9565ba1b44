"""Examples proved: their replies are validated when an archive is built, and compared whenever it is verified."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from marsmith.errors import ArchiveError, HandlerError
from marsmith.formats.examples import FILE_NAME, FOLDER, ValidatedExample, difference, parse_examples
from marsmith.runner import Request, Runner, RunnerReply

# Enough to recognise an answer, few enough that the record can be read and stays equal between machines.
_SIGNIFICANT_DIGITS = 6
# Rounding may use up this share of an example's tolerance, so that nearly all of it is left for real differences.
_ROUNDING_SHARE = 0.1


class ExampleRequest(NamedTuple):
    """A request whose reply is to be validated.

    Attributes:
        name: of the file that will hold the body.
        body: of the request.
        content_type: of the request.
        tolerance: largest absolute difference of any number in the reply, later.
        expect: label that must come out on top; None accepts any.
    """

    name: str
    body: bytes
    content_type: str
    tolerance: float
    expect: str | None = None


def validate_examples(runner: Runner, examples: Sequence[ExampleRequest]) -> list[ValidatedExample]:
    """Send each example and record its reply.

    A JSON reply is recorded as it came, its floats rounded to 6 significant digits where the example's tolerance allows
    that; any other reply by its digest.

    Args:
        runner: has the archive loaded.
        examples: what to send, and what must come out.

    Raises:
        HandlerError: an example was refused, or something else came out on top.
    """
    return [_validated(runner, example) for example in examples]


def replay(archive: Path) -> list[str]:
    """Send an archive's examples to its handler again; return what differs from the validated replies, in words.

    An archive without examples has nothing that could differ.

    Raises:
        HandlerError: the handler does not load.
        FormatError: the archive's list of examples is damaged.
        ArchiveError: the archive cannot be opened, or lacks an example's input.
    """
    with Runner(archive, batch_size=1) as runner:
        listed = runner.folder / FILE_NAME
        if not listed.is_file():
            return []
        examples = parse_examples(listed.read_text(encoding="utf-8"))
        differences = [_replay_one(runner, example) for example in examples]
    return [text for text in differences if text]


def _validated(runner: Runner, request: ExampleRequest) -> ValidatedExample:
    name, body, content_type, tolerance, expect = request
    (reply,) = runner.run([Request(body, content_type)])
    if reply.status >= 400:
        reason = runner.last_traceback or runner.last_failure or _shown(reply)
        raise HandlerError(f"the example {name!r} got status {reply.status}: {reason.rstrip()}")
    example = _record(name, content_type, reply, tolerance)
    if expect is not None and expect != (top := _top(example.reply)):
        came = f"{top!r} came out on top" if top is not None else f"the reply names none: {_shown(reply)}"
        raise HandlerError(
            f"the example {name!r} expects {expect!r}, but {came}",
            tip="mend the weights, the labels or the handler, or change 'expect' in the model spec",
        )
    return example


def _record(name: str, content_type: str, reply: RunnerReply, tolerance: float) -> ValidatedExample:
    value = _json(reply.body)
    if value is None:
        digest = hashlib.sha256(reply.body).hexdigest()
        return ValidatedExample(name, content_type, reply.status, None, digest, tolerance)
    return ValidatedExample(name, content_type, reply.status, _rounded(value, tolerance), None, tolerance)


def _replay_one(runner: Runner, example: ValidatedExample) -> str | None:
    try:
        body = (runner.folder / FOLDER / example.input).read_bytes()
    except OSError as error:
        raise ArchiveError(f"the input of the example {example.input!r} cannot be read: {error.strerror}") from None
    (reply,) = runner.run([Request(body, example.content_type)])
    where = f"example {example.input!r}"
    if reply.status != example.status:
        reason = runner.last_failure or _shown(reply)
        return f"{where}: status {reply.status} instead of {example.status}: {reason}"
    if example.reply_sha256 is not None:
        same = hashlib.sha256(reply.body).hexdigest() == example.reply_sha256
        return None if same else f"{where}: the reply has another digest than the validated one"
    value = _json(reply.body)
    if value is None:
        return f"{where}: the reply is no longer JSON: {_shown(reply)}"
    found = difference(example.reply, value, example.tolerance)
    return f"{where}: {found}" if found else None


def _json(body: bytes) -> Any:
    """Return a body read as JSON; None where it is not, or is ``null``, or has a number that JSON cannot write."""
    try:
        return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _rounded(value: Any, tolerance: float) -> Any:
    if isinstance(value, float):
        short = float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
        return short if math.isfinite(short) and abs(short - value) <= tolerance * _ROUNDING_SHARE else value
    if isinstance(value, list):
        return [_rounded(item, tolerance) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item, tolerance) for key, item in value.items()}
    return value


def _top(reply: Any) -> str | None:
    """Return the label that a reply puts on top: its largest key, or the text that it is."""
    if isinstance(reply, str):
        return reply
    if not isinstance(reply, dict) or not reply:
        return None
    numbers = {key: value for key, value in reply.items() if isinstance(value, int | float)}
    return max(numbers, key=lambda key: numbers[key]) if len(numbers) == len(reply) else None


def _shown(reply: RunnerReply) -> str:
    return " ".join(reply.body[:300].decode("utf-8", "replace").split())
