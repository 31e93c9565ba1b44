"""Examples proved: their replies are validated when an archive is built, and compared whenever it is verified."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from marsmith.archive.answers import (
    EXAMPLE_TOLERANCE,
    Allowance,
    Judgement,
    allowance,
    can_be_compared,
    compare,
    judge,
    may_compute_otherwise,
)
from marsmith.archive.examples import FILE_NAME, FOLDER, ValidatedExample, parse_examples
from marsmith.archive.read import Archive
from marsmith.archive.verify import Check, read_examples
from marsmith.errors import ArchiveError, HandlerError, MarsmithError
from marsmith.json_reader import read_json
from marsmith.runtime.runner import Request, Runner, RunnerReply

# Enough to recognise an answer, few enough that the record can be read and stays equal between machines.
_SIGNIFICANT_DIGITS = 6
# Rounding may use up this share of an example's tolerance, so that nearly all of it is left for real differences.
_ROUNDING_SHARE = 0.1
# Behind the name of an example's input: the file with its reply.
REPLY_SUFFIX = ".reply"


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
    that; any other reply by its digest, and with its bytes where these can be compared with others.

    Args:
        runner: has the archive loaded.
        examples: what to send, and what must come out.

    Raises:
        HandlerError: an example was refused, or something else came out on top.
    """
    return [_validated(runner, example) for example in examples]


def usual_tolerance(runner: Runner, precision: str) -> float:
    """Return the tolerance of an example whose spec says none.

    A machine that lacks a precision computes in another one while it builds. The machine that serves may have it.
    """
    facts = runner.facts() if may_compute_otherwise(runner.handler_settings) else {}
    return max(EXAMPLE_TOLERANCE[precision], allowance(runner.handler_settings, facts).tolerance)


def reply_difference(expected: RunnerReply, actual: RunnerReply, tolerance: float) -> str | None:
    """Return in words where two replies to one request differ; None where they agree within ``tolerance``."""
    found = compare(_record("", "", expected, tolerance, exactly=True), actual.status, actual.body, Allowance())
    return found.problem or found.unproved


def replay(archive: Path, on_unproved: Callable[[str], None] = lambda _: None) -> list[str]:
    """Send an archive's examples to its handler again; return what differs from the validated replies, in words.

    An archive without examples has nothing that could differ.

    Args:
        archive: whose examples.
        on_unproved: is told of each reply that nothing can be said of, in words.

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
        found = [(f"example {example.input!r}", _replay_one(runner, example)) for example in examples]
    for where, judgement in found:
        if judgement.unproved:
            on_unproved(f"{where}: {judgement.unproved}")
    return [f"{where}: {judgement.problem}" for where, judgement in found if judgement.problem]


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
            tip="fix the weights, the labels or the handler, or change 'expect' in the model spec",
        )
    return example


def _record(
    name: str, content_type: str, reply: RunnerReply, tolerance: float, *, exactly: bool = False
) -> ValidatedExample:
    value = _json(reply.body)
    if value is not None:
        value = value if exactly else _rounded(value, tolerance)
        return ValidatedExample(name, content_type, reply.status, value, None, tolerance)
    by_digest = ValidatedExample(
        name, content_type, reply.status, None, hashlib.sha256(reply.body).hexdigest(), tolerance
    )
    if not can_be_compared(reply.body):
        return by_digest
    return replace(by_digest, reply_file=f"{name}{REPLY_SUFFIX}", recorded=reply.body)


def _replay_one(runner: Runner, example: ValidatedExample) -> Judgement:
    folder = runner.folder / FOLDER
    body = _read(folder / example.input, f"the input of the example {example.input!r}")
    if example.reply_file is not None:
        recorded = _read(folder / example.reply_file, f"the reply to the example {example.input!r}")
        example = replace(example, recorded=recorded)
    (reply,) = runner.run([Request(body, example.content_type)])
    if reply.status != example.status and runner.last_failure:
        return Judgement(f"status {reply.status} instead of {example.status}: {runner.last_failure}")
    return judge(example, reply.status, reply.body, runner.handler_settings, runner.facts)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{what} cannot be read: {error.strerror}") from None


def _json(body: bytes) -> Any:
    """Return a body read as JSON; None where it is not, or is ``null``, or has a number that JSON cannot write."""
    try:
        return read_json(body, parse_constant=_refuse)
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


def replay_checks(archive: Archive) -> list[Check]:
    """Return whether an archive's handler gives the validated replies, as checks of ``marsmith.archive.verify``.

    Code from the archive runs.

    Raises:
        ArchiveError: the list of examples is damaged.
        FormatError: the list does not follow its format.
    """
    examples = read_examples(archive)
    if not examples:
        return [Check("replay", "warning", "there are no examples to replay")]
    unproved: list[str] = []
    try:
        differences = replay(archive.path, unproved.append)
    except MarsmithError as error:
        return [Check("replay", "failed", error.message)]
    warnings = [Check("replay", "warning", f"unproved: {text}") for text in unproved]
    good = Check("replay", "ok", f"{len(examples) - len(unproved)} examples got their validated replies")
    return warnings + ([Check("replay", "failed", difference) for difference in differences] or [good])
