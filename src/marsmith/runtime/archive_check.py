"""Check the handler of a model archive: its source, its import, and its answers to single requests and to a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from marsmith.archive.examples import FILE_NAME as EXAMPLES_FILE
from marsmith.archive.examples import FOLDER as EXAMPLES_FOLDER
from marsmith.archive.examples import parse_examples
from marsmith.config.lint.findings import Finding, finding
from marsmith.errors import FormatError, HandlerError
from marsmith.runtime.check import check_handler, in_order
from marsmith.runtime.entry_points import entry_line
from marsmith.runtime.traceback import summary

if TYPE_CHECKING:
    from marsmith.archive.unpacked import UnpackedArchive
    from marsmith.runtime.runner import Runner, RunnerReply

# Tolerance of numbers in replies to one request, alone and in a batch: kernels for other batch sizes round differently.
BATCH_TOLERANCE = 1e-3
_MISMATCH = "number of batch response mismatched"
_NO_LIST = "Invalid model predict output"
_FRAME = re.compile(r'  File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class TrialRequest:
    """A request for a trial of a handler.

    Attributes:
        name: name of the file with the body.
        body: as sent.
        content_type: content type; None to send none.
        tolerance: maximum absolute difference between numbers in two replies to it.
    """

    name: str
    body: bytes
    content_type: str | None
    tolerance: float = BATCH_TOLERANCE


def check_archive(
    archive: Path, *, requests: Sequence[TrialRequest] = (), batch_size: int | None = None
) -> list[Finding]:
    """Check an archive's handler as ``check_handler`` does. Then send it requests, alone and in a batch.

    Args:
        archive: a model archive, or a folder with its members.
        requests: requests to send; empty for the archive's own examples.
        batch_size: size of the batch; None for the model config's batchSize, else 1.

    Returns:
        The findings; files are named as members of the archive.

    Raises:
        UsageError: the archive does not exist.
        ArchiveError: the archive cannot be opened.
        MissingDependencyError: TorchServe is not installed.
    """
    from marsmith.archive.unpacked import unpacked

    with unpacked(archive) as opened:
        module, _, function = opened.handler.partition(":")
        handler = opened.folder / f"{module.rpartition('/')[2].removesuffix('.py')}.py"
        found = check_handler(handler, function=function or None) if handler.is_file() else []
        if not any(item.severity == "error" for item in found):
            place = (handler, entry_line(handler, function or None))
            wanted = list(requests) or _own_examples(opened.folder)
            found += _try_out(opened, wanted, batch_size or opened.batch_size, place)
        return in_order(_as_member(item, opened.folder, archive) for item in found)


def _as_member(item: Finding, folder: Path, archive: Path) -> Finding:
    """Name the file of a finding as a member of the archive."""
    file = item.file.resolve()
    file = file.relative_to(folder) if file.is_relative_to(folder) else item.file
    message = item.message.replace(f"{folder}/", "").replace(str(folder), str(archive))
    return replace(item, file=file, message=message, fix=item.fix.replace(f"{folder}/", ""))


def _own_examples(folder: Path) -> list[TrialRequest]:
    """Return the archive's examples that have a good answer; empty if there are none, or if they cannot be read."""
    with suppress(OSError, FormatError):
        examples = parse_examples((folder / EXAMPLES_FILE).read_text(encoding="utf-8"))
        return [
            TrialRequest(
                example.input,
                (folder / EXAMPLES_FOLDER / example.input).read_bytes(),
                example.content_type,
                max(example.tolerance, BATCH_TOLERANCE),
            )
            for example in examples
            if example.status < 400
        ]
    return []


def _try_out(
    opened: UnpackedArchive, requests: Sequence[TrialRequest], size: int, place: tuple[Path, int]
) -> list[Finding]:
    """Load the archive in a worker and send it batches of one and of ``size``."""
    from marsmith.runtime.runner import Runner

    try:
        with Runner(opened.folder, batch_size=size) as runner:
            if not requests:
                message = "loads, but got no request: the archive has no examples"
                return [finding("not-tried", *place, message, "give one: marsmith check ARCHIVE --input FILE")]
            alone = [_send(runner, [request], place) for request in requests]
            # Report each place once, however many requests fail there.
            found = list({(item.rule, item.file, item.line): item for _, items in alone for item in items}.values())
            if found or size == 1:
                return found
            batch = [requests[i % len(requests)] for i in range(size)]
            replies, found = _send(runner, batch, place)
            expected = [alone[i % len(requests)][0][0] for i in range(size)]
            return found or _compare(batch, expected, replies, place)
    except HandlerError as error:
        reason, _, traceback = error.message.partition("\n")
        where = _place_in(traceback, place)
        return [finding("load-fails", *where, reason, error.tip or "fix what the traceback shows", traceback)]


def _send(
    runner: Runner, requests: Sequence[TrialRequest], place: tuple[Path, int]
) -> tuple[list[RunnerReply], list[Finding]]:
    """Send one batch. Return its replies, and a finding about the whole batch."""
    from marsmith.runtime.runner import Request

    replies = runner.run([Request(request.body, request.content_type) for request in requests])
    failed = next((reply for reply in replies if reply.status >= 500), None)
    if failed is None:
        return replies, []
    text = failed.body.decode(errors="replace")
    sent = f"a batch of {len(requests)}" if len(requests) > 1 else f"{requests[0].name} alone"
    if _MISMATCH in text or _NO_LIST in text:
        message = f"answers {sent} with something other than a list of {len(requests)}"
        fix = "return a list with one reply a request, in the order of data"
        return replies, [finding("reply-count", *place, message, fix)]
    traceback = runner.last_traceback or ""
    reason = (summary(traceback) if traceback else "") or runner.last_failure or text.strip()
    message = f"answers {sent} with status {failed.status}: {reason}"
    fix = "fix what the traceback shows; a bad request must not fail its neighbours"
    return replies, [finding("batch-fails", *_place_in(traceback, place), message, fix, traceback)]


def _compare(
    requests: Sequence[TrialRequest],
    expected: Sequence[RunnerReply],
    replies: Sequence[RunnerReply],
    place: tuple[Path, int],
) -> list[Finding]:
    """Compare the replies in a batch with the replies to the same requests alone."""
    for request, alone, reply in zip(requests, expected, replies, strict=True):
        problem = _difference(alone, reply, request.tolerance)
        if problem:
            message = f"answers {request.name} differently in a batch of {len(requests)} than alone: {problem}"
            fix = "keep requests and replies in one order, and let no request change what its neighbours get"
            return [finding("batch-changes-answers", *place, message, fix)]
    return []


def _difference(alone: RunnerReply, reply: RunnerReply, tolerance: float) -> str | None:
    from marsmith.runtime.replay import reply_difference

    return reply_difference(alone, reply, tolerance)


def _place_in(traceback: str, place: tuple[Path, int]) -> tuple[Path, int]:
    """Return the deepest line of a traceback in a file of the archive; such paths are relative."""
    frames = [match for match in _FRAME.finditer(traceback) if not Path(match["file"]).is_absolute()]
    own = [match for match in frames if not match["file"].startswith("<")]
    return (place[0].parent / own[-1]["file"], int(own[-1]["line"])) if own else place
