"""Examples of an archive: validate their replies when it is built, and compare them when it is verified."""

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

# Enough values to recognise an answer, and few enough for a readable record that is equal between machines.
_SIGNIFICANT_DIGITS = 6
# Rounding may use this share of an example's tolerance, which leaves nearly all of it for real differences.
_ROUNDING_SHARE = 0.1
# Suffix after the name of an example's input: the file with its reply.
REPLY_SUFFIX = ".reply"


class ExampleRequest(NamedTuple):
    """A request with a reply to validate.

    Attributes:
        name: name of the file with the body.
        body: content of the request.
        content_type: content type of the request.
        tolerance: maximum absolute difference of any number in later replies.
        expect: expected top label; None for any.
    """

    name: str
    body: bytes
    content_type: str
    tolerance: float
    expect: str | None = None


def validate_examples(runner: Runner, examples: Sequence[ExampleRequest]) -> list[ValidatedExample]:
    """Send each example and record its reply.

    A JSON reply is recorded with its floats rounded to 6 significant digits if the example's tolerance allows this. Any
    other reply is recorded by its digest, and with its bytes if they can be compared.

    Args:
        runner: runner that has loaded the archive.
        examples: requests, with their expected labels.

    Raises:
        HandlerError: an example was refused, or has another top label.
    """
    return [_validated(runner, example) for example in examples]


def usual_tolerance(runner: Runner, precision: str) -> float:
    """Return the default tolerance of an example.

    A machine without support for a precision computes in another one at build time. The serving machine may support it.
    """
    facts = runner.facts() if may_compute_otherwise(runner.handler_settings) else {}
    return max(EXAMPLE_TOLERANCE[precision], allowance(runner.handler_settings, facts).tolerance)


def reply_difference(expected: RunnerReply, actual: RunnerReply, tolerance: float) -> str | None:
    """Describe the difference between two replies to one request; None if they agree within ``tolerance``."""
    found = compare(_record("", "", expected, tolerance, exactly=True), actual.status, actual.body, Allowance())
    return found.problem or found.unproved


def replay(archive: Path, on_unproved: Callable[[str], None] = lambda _: None) -> list[str]:
    """Send an archive's examples to its handler again. Return the differences from the validated replies.

    An archive without examples has no differences.

    Args:
        archive: the archive.
        on_unproved: called with a description of each reply that cannot be compared.

    Raises:
        HandlerError: the handler does not load.
        FormatError: the archive's list of examples is damaged.
        ArchiveError: the archive cannot be opened, or an example's input is missing.
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
        came = f"{top!r} is the top label" if top is not None else f"the reply names none: {_shown(reply)}"
        raise HandlerError(
            f"the example {name!r} expects {expect!r}, but {came}",
            tip="correct the weights, the labels or the handler, or change 'expect' in the model spec",
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
    """Parse a body as JSON; None if it is not JSON, is ``null``, or has a number that JSON cannot represent."""
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
    """Return the top label of a reply: its largest key, or the reply itself if it is a text."""
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

    This runs code from the archive.

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
