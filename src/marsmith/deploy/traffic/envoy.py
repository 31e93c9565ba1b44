"""The front of a server whose requests Envoy divides."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from marsmith import files, run_state
from marsmith.deploy.front import Answer, Front, NoFront, Share
from marsmith.errors import ServerError
from marsmith.files import LockedError
from marsmith.project import Project
from marsmith.server.front import access_log
from marsmith.server.front.bootstrap import ANSWERS_FILE
from marsmith.server.front.files import apply_traffic, read_traffic
from marsmith.server.front.traffic import LARGEST_SEED, Canary, Sticky, Traffic

_FOLDER = "front"
# Several rollouts change the traffic, each for its own model.
_LOCK = "rollouts.lock"
_WAIT_S = 10.0
# A log that is larger is put aside; the answers of a few hundred thousand requests.
_LOG_BYTES = 64 << 20


@dataclass(frozen=True)
class EnvoyFront:
    """The front of a running server.

    Attributes:
        folder: folder of its files.
        missing: None: it can divide requests.
    """

    folder: Path
    missing: str | None = None

    def set_share(self, model: str, share: Share | None) -> None:
        """Give a version a share of a model's requests; None: all of them go to the default version.

        Raises:
            ServerError: Envoy does not take it; the shares before are in force.
        """
        with self._locked():
            before = self._traffic()
            others = tuple(each for each in before.canaries if each.model != model)
            mine = (_canary(model, share),) if share else ()
            try:
                apply_traffic(self.folder, replace(before, canaries=(*others, *mine)))
            except OSError as error:
                raise ServerError(f"cannot write the front's files: {error.strerror}") from None

    def share_of(self, model: str) -> Share | None:
        """Return the share that is in force; None if all requests go to the default version."""
        canary = self._traffic().canary_of(model)
        if canary is None:
            return None
        sticky = (canary.sticky.kind, canary.sticky.name) if canary.sticky else None
        return Share(canary.version, canary.share, sticky, canary.per_try_timeout_s)

    def end_of_log(self) -> int:
        """Return the position after the last answer that was logged."""
        return access_log.read_answers(self._log, 0)[1]

    def answers(self, position: int) -> tuple[Sequence[Answer], int]:
        """Return the answers that were logged since a position, and the position after them."""
        found = access_log.read_answers(self._log, position)
        if found[1] > _LOG_BYTES:
            with self._locked():
                access_log.rotate(self._log, _LOG_BYTES)
        return found

    @property
    def _log(self) -> Path:
        return self.folder / ANSWERS_FILE

    def _traffic(self) -> Traffic:
        return read_traffic(self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            with files.lock(self.folder / _LOCK, wait_s=_WAIT_S):
                yield
        except LockedError as error:
            raise ServerError(f"the shares of another model are being changed: {error}", tip="try again") from None


def front_of(project: Project) -> Front:
    """Return the front of a project's server."""
    try:
        state = run_state.read(project)
    except ServerError:
        return NoFront()
    return EnvoyFront(project.run / _FOLDER) if state.backend else NoFront()


def _canary(model: str, share: Share) -> Canary:
    # One draw for all shares of a version, and another one for the next version: other users are the first ones then.
    seed = zlib.crc32(f"{model}:{share.version}".encode()) % LARGEST_SEED
    sticky = Sticky(*share.sticky) if share.sticky else None
    return Canary(model, share.version, share.share, sticky, share.try_timeout_s, seed)
