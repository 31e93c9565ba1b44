"""When a server is ready: every version has all its workers READY and has answered an example of its archive.

TorchServe's own ``/ping`` says Healthy while workers die, so it is not asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marsmith.formats.examples import ValidatedExample, difference

if TYPE_CHECKING:
    from marsmith.client import VersionStatus

Version = tuple[str, str]


@dataclass(frozen=True)
class Outlook:
    """How far a server has come.

    Attributes:
        ready: versions that are ready.
        to_ask: versions whose workers are READY and that have an example to answer yet.
        waiting: what every version that is not ready waits for, in words.
        listening: whether the server answers at all; one that serves no version is ready when it does.
    """

    ready: tuple[Version, ...]
    to_ask: tuple[Version, ...]
    waiting: Mapping[Version, str]
    listening: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.listening and not self.waiting


def outlook(
    expected: Sequence[Version],
    described: Mapping[Version, VersionStatus],
    with_examples: Collection[Version],
    answered: Collection[Version],
    unsettled: Mapping[Version, str] | None = None,
) -> Outlook:
    """Decide how far a server has come.

    Args:
        expected: the versions that it is to serve.
        described: what describe says of the versions that are registered.
        with_examples: the versions whose archive holds an example.
        answered: the versions that have answered it.
        unsettled: what is still to be changed about versions, in words.
    """
    waiting = {version: "not registered yet" for version in expected if version not in described}
    waiting |= unsettled or {}
    to_ask = []
    for version in expected:
        status = described.get(version)
        if status is None:
            continue
        reason = _workers_missing(status)
        if reason:
            waiting[version] = reason
        elif status.workers and version in with_examples and version not in answered:
            to_ask.append(version)
            waiting.setdefault(version, "has not answered its example yet")
    ready = tuple(version for version in expected if version not in waiting)
    return Outlook(ready, tuple(to_ask), waiting)


def wrong_answer(expected: ValidatedExample, status: int, body: bytes) -> str | None:
    """Return in words where a reply differs from the validated one; None where it agrees within the tolerance."""
    if status != expected.status:
        return f"status {status} instead of {expected.status}: {body[:200].decode('utf-8', 'replace')}"
    if expected.reply_sha256 is not None:
        digest = hashlib.sha256(body).hexdigest()
        return None if digest == expected.reply_sha256 else "the reply has other bytes than when it was validated"
    try:
        return difference(expected.reply, json.loads(body), expected.tolerance)
    except ValueError:
        return f"the reply is not JSON: {body[:200].decode('utf-8', 'replace')}"


def _workers_missing(status: VersionStatus) -> str | None:
    wanted = max(status.min_workers, len(status.workers))
    return None if status.ready_workers >= wanted else f"{status.ready_workers} of {wanted} workers ready"
