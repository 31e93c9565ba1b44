"""What became of the requests of models in a rollout: the front's access log, one JSON line a request."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from marsmith.server.front import admin

# Whoever reads the log begins a new one above this size, the answers of a few hundred thousand requests (``rotate``).
# If nobody reads it, it gets twice as large.
LARGEST_BYTES = 64 << 20

_OLDER = ".1"
# Envoy cuts what clients can lengthen.
_LONGEST_LINE = 1 << 16
# Both clocks count milliseconds, and do not start at the same moment.
_NEARLY = 0.9
# gRPC's codes of a server that failed, as the HTTP statuses 5xx; and NOT_FOUND, which a missing version gets.
_GRPC_FAILURES = frozenset({2, 4, 5, 8, 13, 14})


@dataclass(frozen=True)
class Answer:
    """One request of a model whose requests are divided or copied, when it has ended.

    Attributes:
        at_s: when it came, in seconds since the epoch.
        model: name of the model.
        version: version that the first attempt was for; empty: the default version.
        api: ``rest`` or ``grpc``.
        share: the canary's share at that time, in ten-thousandths; 0 if the default version served it.
        user: hash of the sticky key; empty if it had none.
        request_id: the header ``x-request-id``.
        status: HTTP status of the reply; 0: the client did not wait for it.
        grpc_status: gRPC's code; None over REST.
        item_status: status of an error inside of a reply that gRPC calls OK; 0 if there is none.
        attempts: how many were made; 2 on a shielded canary: the default version got it too.
        first_failure: why the default version got it too: the canary's ``answer``, its ``time`` without one, or its
            ``connection``, which is TorchServe's; empty: it did not.
        duration_ms: from its first byte to the last one of its reply, in milliseconds.
        copied_to: version that got a copy (``default``: the default one); empty: none.
        flags: Envoy's response flags, such as ``UT``; ``-`` if there are none.
    """

    at_s: float
    model: str
    version: str
    api: str
    share: int
    user: str
    request_id: str
    status: int
    grpc_status: int | None
    item_status: int
    attempts: int
    first_failure: Literal["", "answer", "time", "connection"]
    duration_ms: int
    copied_to: str
    flags: str

    @property
    def was_answered(self) -> bool:
        """Whether the client got any reply; if not, nothing follows from it."""
        return self.status != 0

    @property
    def was_repeated(self) -> bool:
        """Whether the canary got it first and then the default version."""
        return self.first_failure != ""

    @property
    def reply_failed(self) -> bool:
        """Whether the reply that the client got is a failure of the server."""
        if self.status >= 500 or self.item_status >= 500:
            return True
        return self.grpc_status in _GRPC_FAILURES

    @property
    def was_refused(self) -> bool:
        """Whether the reply says that the client is to blame (4xx)."""
        return 400 <= (self.item_status or self.status) < 500

    @property
    def failed_on_canary_alone(self) -> bool:
        """Whether it failed on the canary, and the default version has answered it (or was not asked)."""
        if not self.version:
            return False
        # A restart of TorchServe breaks connections of both versions.
        return (
            self.first_failure in {"answer", "time"} and not self.reply_failed
            if self.was_repeated
            else self.reply_failed
        )


def read_answers(path: Path, offset: int) -> tuple[list[Answer], int]:
    """Return the answers that were written since, and where to go on.

    Args:
        path: the log; it may not exist yet.
        offset: what the last call returned; 0 for the whole log.

    After ``rotate`` the rest of the older file comes first. A line that is not complete yet comes with the next call.
    """
    older = path.with_name(path.name + _OLDER)
    if not _ends_line(path, offset):
        rest, _ = _read(older, offset) if _ends_line(older, offset) else ([], 0)
        found, offset = _read(path, 0)
        return rest + found, offset
    return _read(path, offset)


def end_of(path: Path) -> int:
    """Return the offset after the last answer in the log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = file.seek(max(0, size - _LONGEST_LINE))
            return begin + file.read().rfind(b"\n") + 1
    except FileNotFoundError:
        return 0


def rotate(path: Path, max_bytes: int) -> bool:
    """Begin a new log if this one is larger than ``max_bytes``, and return whether it was.

    A reader has the rest of one older log, so it calls this directly after it has read.

    Raises:
        FrontError: Envoy does not answer.
    """
    if _size(path) <= max_bytes:
        return False
    path.replace(path.with_name(path.name + _OLDER))
    admin.ask(path.parent, "/reopen_logs", method="POST")
    return True


def _ends_line(path: Path, offset: int) -> bool:
    """Whether a line ends at an offset, as where the last call has stopped: another log may be there by now."""
    if offset == 0:
        return True
    try:
        with path.open("rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"
    except FileNotFoundError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, offset: int) -> tuple[list[Answer], int]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            whole = file.read()
    except FileNotFoundError:
        return [], 0
    whole = whole[: whole.rfind(b"\n") + 1]
    return [_answer(json.loads(line)) for line in whole.splitlines()], offset + len(whole)


def _answer(line: dict[str, Any]) -> Answer:
    draw, request_id = str(line["draw"] or ""), str(line["request_id"] or "")
    return Answer(
        at_s=float(line["at"]),
        model=str(line["model"] or ""),
        version=str(line["version"] or ""),
        api=str(line["api"] or ""),
        share=int(line["share"] or 0),
        user="" if draw == request_id else draw,
        request_id=request_id,
        status=int(line["status"] or 0),
        grpc_status=None if line["grpc_status"] is None else int(line["grpc_status"]),
        item_status=int(line["item"] or 0),
        attempts=int(line["attempts"] or 0),
        first_failure=_first_failure(line),
        duration_ms=int(line["duration_ms"] or 0),
        copied_to=str(line["shadow"] or ""),
        flags=str(line["flags"] or ""),
    )


def _first_failure(line: dict[str, Any]) -> Literal["", "answer", "time", "connection"]:
    if line["limit_ms"] is None or int(line["attempts"] or 0) < 2:
        return ""
    if line["failed"]:
        return "answer"
    waited_ms, limit_ms = float(line["second_ms"] or 0), float(line["limit_ms"])
    return "time" if waited_ms >= _NEARLY * limit_ms else "connection"
