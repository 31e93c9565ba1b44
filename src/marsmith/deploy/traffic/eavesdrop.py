"""Read what both versions of a shadow have replied from their prediction logs, and compare it as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from marsmith.archive import Archive
from marsmith.archive.admit import admit
from marsmith.config import admission_policy
from marsmith.deploy.rollout.site import ModelServer
from marsmith.errors import ArchiveError, HandlerError
from marsmith.predictions import Comparison, Difference, LogFollower, Pair, Prediction, Report
from marsmith.predictions.comparable import log_of
from marsmith.predictions.comparison import Compare
from marsmith.predictions.files import own_comparison

# Time for one look, in seconds: an operator's order is not to wait for a long log.
LONGEST_LOOK_S = 0.5
# Flips kept in the state of a rollout; a model may have thousands of classes.
MOST_FLIPS = 100


class Eavesdropper(Protocol):
    """Compares the replies of two versions."""

    def read(self) -> bool:
        """Read some of what came since the last look; return whether there was anything."""

    def taken(self) -> list[tuple[Pair, Difference]]:
        """Return the pairs that were compared since the last call."""

    def report(self) -> Report:
        """Return what was found until now."""

    def close(self) -> None:
        """Stop."""


@dataclass(frozen=True)
class Subject:
    """Whose replies are compared.

    Attributes:
        model: model name.
        old: version that is the default.
        new: version on trial.
        since_s: when the copies began, in seconds since the epoch.
        copied_to: which of them gets copies.
    """

    model: str
    old: str
    new: str
    since_s: float
    copied_to: str

    def has(self, prediction: Prediction) -> bool:
        """Return whether a logged reply is one of them: a copy's of the one version, a user's of the other."""
        if prediction.model != self.model or prediction.time < self.since_s:
            return False
        return prediction.version in {self.old, self.new} and prediction.shadow == (
            prediction.version == self.copied_to
        )


class LogEavesdropper:
    """Reads the logs again from their beginning, so that another process can go on after a SIGKILL."""

    def __init__(self, subject: Subject, logs: Sequence[Path], compare: Compare | None = None) -> None:
        """Begin.

        Args:
            subject: whose replies are compared.
            logs: the files that they write.
            compare: compares two replies; None: by what they hold.
        """
        self._subject = subject
        self._logs = [LogFollower(path) for path in dict.fromkeys(logs)]
        self._comparison = Comparison(subject.old, subject.new, compare=compare)
        self._taken: list[tuple[Pair, Difference]] = []
        self._resources = ExitStack()

    @classmethod
    def of(cls, site: ModelServer, subject: Subject, tell: Callable[[str], None]) -> LogEavesdropper:
        """Open the logs of both versions, and the comparison of the new one's handler if it has one that works.

        Raises:
            ArchiveError: an archive cannot be opened.
        """

        def admitted(path: Path) -> None:
            admit(path, admission_policy(site.project))

        paths = [log_of(site.project, archive_of(site, version)) for version in (subject.old, subject.new)]
        with ExitStack() as resources:
            compare = None
            try:
                compare = resources.enter_context(own_comparison(site.store, subject.model, subject.new, admitted))
            except HandlerError as error:
                tell(f"{error.message}; replies are compared by what they hold")
            made = cls(subject, paths, _unfailing(compare, tell) if compare else None)
            made._resources = resources.pop_all()
        return made

    def read(self) -> bool:
        """Read some of what came since the last look; return whether there was anything."""
        late, any_read = time.monotonic() + LONGEST_LOOK_S, False
        for prediction in self._each():
            any_read = True
            if self._subject.has(prediction):
                self._taken += self._comparison.add([prediction])
            if time.monotonic() > late:
                break
        self._comparison.damaged = sum(log.damaged for log in self._logs)
        return any_read

    def taken(self) -> list[tuple[Pair, Difference]]:
        """Return the pairs that were compared since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def report(self) -> Report:
        """Return what was found until now."""
        report = self._comparison.report()
        return replace(report, flips=report.flips[:MOST_FLIPS])

    def close(self) -> None:
        """End the handler's comparison."""
        self._resources.close()

    def _each(self) -> Iterator[Prediction]:
        for log in self._logs:
            yield from log.each()


def archive_of(site: ModelServer, version: str) -> Archive:
    """Return the archive of a registered version.

    Raises:
        ArchiveError: it is not in the model store, or cannot be opened.
    """
    path = site.store / site.describe(version).archive_url.rpartition("/")[2]
    if not path.exists():
        raise ArchiveError(f"{path.name}, the archive of {site.model}:{version}, is not in the model store")
    return Archive.open(path)


def _unfailing(compare: Compare, tell: Callable[[str], None]) -> Compare:
    """Let a comparison that fails say that two replies do not agree, and report its first failure."""
    told: list[str] = []

    def compared(pair: Pair) -> Difference:
        try:
            return compare(pair)
        except HandlerError as error:
            if not told:
                told.append(error.message)
                tell(f"{error.message}; such replies count as different")
            return Difference(agrees=False)

    return compared
