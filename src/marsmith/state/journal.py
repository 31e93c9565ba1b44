"""Journal of a model's deploys, ``.marsmith/deploy/<model>.json``, and the lock for one process at a time.

It is written before each step that changes something, so that it always covers what was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from marsmith import files, state_files
from marsmith.errors import FormatError, ServerError
from marsmith.files import LockedError
from marsmith.state.model_file import ModelFile
from marsmith.state_files import NewerFormatError

FORMAT_VERSION = 1
# Older releases can still be deployed by the name of their archive.
MOST_RELEASES = 50

Kind = Literal["deploy", "rollback"]


@dataclass(frozen=True)
class Release:
    """A version that was, or will become, the default version of its model.

    Attributes:
        version: model version.
        archive: file name in the model store.
        digest: SHA-256 of the file in hex; None if marsmith did not deploy it.
        workers: minimum number of its workers.
    """

    version: str
    archive: str
    digest: str | None
    workers: int


@dataclass(frozen=True)
class Copy:
    """A file that a deploy copies into the model store.

    Attributes:
        path: path of the copy.
        source: path of the original.
        sha256: SHA-256 of its content in hex.
        inode: inode of the copy, which distinguishes it from a file that someone else has put there since.
    """

    path: str
    source: str
    sha256: str
    inode: int


@dataclass(frozen=True)
class Change:
    """A deploy or rollback that has begun and not ended.

    Attributes:
        kind: deploy or rollback.
        target: the version to switch to.
        before: the default version at the beginning; None if the model was not registered.
        registered_before: whether the target was registered at the beginning.
        workers_before: number of the target's workers at the beginning.
        stored: whether the target's archive is a copy by this change in the model store.
        keep: number of earlier versions that stay registered.
        step: the next action.
        source: the archive to copy into the model store.
        copies: files that have been copied, or are about to get their names.
        workers: number of workers of each registered version at the beginning; None if it was not recorded.
    """

    kind: Kind
    target: Release
    before: Release | None
    registered_before: bool
    workers_before: int
    stored: bool
    keep: int
    step: str
    source: str | None = None
    copies: tuple[Copy, ...] = ()
    workers: Mapping[str, int] | None = None

    @property
    def releases(self) -> tuple[Release, ...]:
        """The target, and the version before if there was one."""
        return (self.target, *([self.before] if self.before else []))


@dataclass(frozen=True)
class Journal:
    """History of the deploys of one model.

    Attributes:
        model: model name.
        releases: default versions, the present one last; each version occurs once.
        change: the change in progress; None if there is none.
    """

    model: str
    releases: tuple[Release, ...] = ()
    change: Change | None = None

    def needed(self) -> tuple[Release, ...]:
        """Return the releases that may be needed again: those of the change first, then the latest first."""
        return (*(self.change.releases if self.change else ()), *reversed(self.releases))

    def without(self, version: str) -> Journal:
        """Return this journal with no rollback to ``version``."""
        return replace(self, releases=tuple(release for release in self.releases if release.version != version))

    def begun(self, change: Change) -> Journal:
        """Return this journal with ``change`` under way."""
        return replace(self, change=change)

    def at(self, step: str) -> Journal:
        """Return this journal with ``step`` as the next action of the change."""
        return replace(self, change=replace(self.change, step=step) if self.change else None)

    def copying(self, copy: Copy) -> Journal:
        """Return this journal with a file that the change is about to rename to its final name."""
        change = self.change
        return replace(self, change=replace(change, copies=(*change.copies, copy)) if change else None)

    def scaled(self, release: Release) -> Journal:
        """Return this journal with the workers of the present release, which is added if it is missing."""
        if release.version not in {known.version for known in self.releases}:
            return replace(self, releases=(*self.releases, release)[-MOST_RELEASES:])
        others = [known if known.version != release.version else release for known in self.releases]
        return replace(self, releases=tuple(others))

    def ended(self) -> Journal:
        """Return this journal without a change."""
        return replace(self, change=None)

    def accepted(self) -> Journal:
        """Return this journal with the target of the change as the present release.

        After a deploy the previous version comes right before it. A rollback removes the version that it leaves.
        """
        change = self.change
        if change is None:
            return self
        left = change.before
        moved = {change.target.version, *([left.version] if left else [])}
        releases = [release for release in self.releases if release.version not in moved]
        if left and change.kind == "deploy":
            releases.append(_known(left, self.releases))
        return replace(self, releases=(*releases, change.target)[-MOST_RELEASES:])


def _known(release: Release, releases: tuple[Release, ...]) -> Release:
    """Add the recorded digest of a deployed ``release``."""
    noted = {known.version: known.digest for known in releases if known.archive == release.archive}
    return replace(release, digest=release.digest or noted.get(release.version))


def render_journal(journal: Journal) -> str:
    """Render the file."""
    return state_files.render(journal, FORMAT_VERSION)


def parse_journal(text: str, source: str) -> Journal:
    """Parse the file; ``parse_journal(render_journal(j), ...) == j``.

    Raises:
        FormatError: it is damaged, or a later marsmith wrote it.
    """
    return state_files.parse(Journal, text, source, version=FORMAT_VERSION)


class JournalFile(ModelFile):
    """The journal file of one model, ``.marsmith/deploy/<model>.json``."""

    FOLDER = "deploy"

    def read(self) -> Journal:
        """Read the journal; an empty one if there is none.

        Raises:
            ServerError: it is damaged, or a later marsmith wrote it.
        """
        try:
            return parse_journal(self.path.read_text(encoding="utf-8"), str(self.path))
        except FileNotFoundError:
            return Journal(self.model)
        except NewerFormatError as error:
            raise ServerError(error.message, tip=error.tip) from None
        except (OSError, UnicodeDecodeError, FormatError) as error:
            raise ServerError(
                f"the journal of {self.model}'s deploys cannot be read: {error}",
                tip=f"check what is registered (marsmith models), then delete the journal: rm {self.path}",
            ) from None

    def write(self, journal: Journal) -> None:
        """Write the journal atomically, and sync it to the disk.

        Raises:
            ServerError: it cannot be written, for example on a full disk; the previous journal is kept.
        """
        try:
            files.write_atomically(self.path, render_journal(journal))
        except OSError as error:
            raise ServerError(f"cannot write the journal {self.path}: {error.strerror}") from None

    def forget(self, version: str) -> None:
        """Remove a version from the targets of rollbacks.

        Raises:
            ServerError: a deploy is in progress, or an interrupted one needs the version.
        """
        with self.locked():
            journal = self.read()
            if journal.change and version in {release.version for release in journal.change.releases}:
                raise ServerError(
                    f"a {journal.change.kind} of {self.model}:{journal.change.target.version} was interrupted and needs"
                    f" {version}",
                    tip=f"finish or undo it first: the next marsmith deploy or rollback of {self.model} does",
                )
            self.write(journal.without(version))

    @contextmanager
    def locked(self, wait_s: float = 0.0) -> Iterator[None]:
        """Lock out other deploys of the model. The lock is released when the process ends in any way.

        Args:
            wait_s: maximum wait for another deploy, in seconds.

        Raises:
            ServerError: another process deploys the model; the message names it.
        """
        try:
            with files.lock(self.path.with_suffix(".lock"), wait_s=wait_s):
                yield
        except LockedError as error:
            raise ServerError(
                f"{self.model} is being deployed or rolled back by another process, pid {error.holder or 'unknown'}",
                tip="wait for it to end, or let this command wait: --wait SECONDS",
            ) from None
