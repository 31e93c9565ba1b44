"""The front of a server whose requests Envoy divides."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from marsmith import files, run_state
from marsmith.deploy.front import Answer, Copies, CopyCounts, Front, NoFront, Share
from marsmith.deploy.traffic import mirror
from marsmith.errors import ServerError
from marsmith.files import LockedError
from marsmith.project import Project
from marsmith.server.front import access_log, admin
from marsmith.server.front.bootstrap import ANSWERS_FILE
from marsmith.server.front.clusters import APIS, canary_cluster, stat_name
from marsmith.server.front.files import apply_traffic, read_traffic
from marsmith.server.front.traffic import LARGEST_SEED, Canary, Sticky, Traffic

_FOLDER = "front"
# Several rollouts change the traffic, each for its own model.
_LOCK = "rollouts.lock"
_WAIT_S = 10.0
_LOOK_S = 0.05
# Time beyond that of a first attempt until it has ended for certain.
_SPARE_S = 1.0


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
        """Give a version a share of a model's requests, which may be 0; None: all of them go to the default version.

        With None, requests that the version has in hand are waited for: they can be repeated until then.

        Raises:
            ServerError: Envoy does not take it; the shares before are in force.
        """
        before = self._traffic().canary_of(model)
        if share is None and before is not None:
            self._apply(model, replace(before, share=0))
            self._wait_until_idle(before)
        self._apply(model, _canary(model, share) if share else None)

    def share_of(self, model: str) -> Share | None:
        """Return the share that is in force; None if all requests go to the default version."""
        canary = self._traffic().canary_of(model)
        if canary is None:
            return None
        sticky = (canary.sticky.kind, canary.sticky.name) if canary.sticky else None
        return Share(canary.version, canary.share, sticky, canary.per_try_timeout_s)

    def set_copies(self, model: str, copies: Copies | None, *, of_canary: bool = False) -> None:
        """Copy a part of a model's requests to a version, which may be 0; None: to none.

        Args:
            model: model name.
            copies: who gets them.
            of_canary: whether those of the version with a share are copied, and not those of the default version.

        Raises:
            ServerError: Envoy does not take it; what was in force before is.
        """
        with self._locked():
            mirror.set_copies(self.folder, model, copies, of_canary=of_canary)

    def copies_of(self, model: str, *, of_canary: bool = False) -> Copies | None:
        """Return the copies that are in force; None if there are none."""
        return mirror.copies_in(self._traffic(), model, of_canary=of_canary)

    def copy_counts(self, model: str, *, of_canary: bool = False) -> CopyCounts:
        """Return how many copies of a model's requests Envoy has sent since it was started."""
        return mirror.copy_counts(self.folder, model, of_canary=of_canary)

    def end_of_log(self) -> int:
        """Return the position after the last answer that was logged."""
        return access_log.end_of(self._log)

    def answers(self, position: int) -> tuple[Sequence[Answer], int]:
        """Return the answers that were logged since a position, and the position after them."""
        found = access_log.read_answers(self._log, position)
        if found[1] > access_log.LARGEST_BYTES:
            with self._locked():
                access_log.rotate(self._log, access_log.LARGEST_BYTES)
        return found

    def _apply(self, model: str, canary: Canary | None) -> None:
        with self._locked():
            before = self._traffic()
            others = tuple(each for each in before.canaries if each.model != model)
            try:
                apply_traffic(self.folder, replace(before, canaries=(*others, *([canary] if canary else []))))
            except OSError as error:
                raise ServerError(f"cannot write the front's files: {error.strerror}") from None

    def _wait_until_idle(self, canary: Canary) -> None:
        """Wait until no request is at its first attempt: without the canary's cluster none can have a second one."""
        names = "|".join(re.escape(stat_name(canary_cluster(canary, api))) for api in APIS)
        path = "/stats?filter=" + quote(rf"^cluster\.({names})\.upstream_rq_active$", safe="")
        late = time.monotonic() + canary.per_try_timeout_s + _SPARE_S
        while any(not line.endswith(": 0") for line in admin.ask(self.folder, path).splitlines()):
            if time.monotonic() > late:
                return
            time.sleep(_LOOK_S)

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
