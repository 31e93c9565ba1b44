"""``.marsmith/deploy/<model>.json``: what was deployed, and what was going on when a deploy was interrupted.

It is written before each step that changes something, so that it never says less than what was done.

The journal of a model's deploys on disk, and the lock that lets one process at a time deploy a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from marsmith import files, state_files
from marsmith.errors import FormatError, ServerError
from marsmith.files import LockedError
from marsmith.names import check_model_name
from marsmith.project import Project
from marsmith.state_files import NewerFormatError

FORMAT_VERSION = 1
# Releases further back can still be deployed by name of their archive.
MOST_RELEASES = 50

Kind = Literal["deploy", "rollback"]


@dataclass(frozen=True)
class Release:
    """A version that was, or is to become, the default version of its model.

    Attributes:
        version: model version.
        archive: its file name in the model store.
        digest: SHA-256 of that file in hex; None where marsmith did not deploy it.
        workers: how many workers it had, or is to have, at least.
    """

    version: str
    archive: str
    digest: str | None
    workers: int


@dataclass(frozen=True)
class Copy:
    """A file that a deploy puts into the model store.

    Attributes:
        path: where it is put.
        source: what it is a copy of.
        sha256: of its content, in hex.
        inode: of the file itself, by which it is told from one that somebody else has put there since.
    """

    path: str
    source: str
    sha256: str
    inode: int


@dataclass(frozen=True)
class Change:
    """A deploy or rollback that has begun and not ended.

    Attributes:
        kind: which of the two.
        target: the version to go to.
        before: the default version when it began; None where the model was not registered.
        registered_before: whether the target was registered when it began.
        workers_before: how many workers the target had then.
        stored: whether the target's archive is a copy that this change makes in the model store.
        keep: how many earlier versions stay registered.
        step: the action that is about to be done.
        source: the archive that was named, where it is to be copied into the model store.
        copies: the files that have been put there, or are about to get their names.
        workers: how many workers each registered version had when it began; None where that was not noted.
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
        """The target, and the version before where there was one."""
        return (self.target, *([self.before] if self.before else []))


@dataclass(frozen=True)
class Journal:
    """What is known about the deploys of one model.

    Attributes:
        model: model name.
        releases: the default versions, the present one last; each version stands once.
        change: what has begun and not ended; None most of the time.
    """

    model: str
    releases: tuple[Release, ...] = ()
    change: Change | None = None

    def needed(self) -> tuple[Release, ...]:
        """Return what a deploy, a rollback or a recovery may go to, what is under way first, then the latest first."""
        return (*(self.change.releases if self.change else ()), *reversed(self.releases))

    def without(self, version: str) -> Journal:
        """Return this journal with no rollback to ``version``."""
        return replace(self, releases=tuple(release for release in self.releases if release.version != version))

    def begun(self, change: Change) -> Journal:
        """Return this journal with ``change`` under way."""
        return replace(self, change=change)

    def at(self, step: str) -> Journal:
        """Return this journal with the change under way about to do ``step``."""
        return replace(self, change=replace(self.change, step=step) if self.change else None)

    def copying(self, copy: Copy) -> Journal:
        """Return this journal with a file that the change under way is about to give its name."""
        change = self.change
        return replace(self, change=replace(change, copies=(*change.copies, copy)) if change else None)

    def scaled(self, release: Release) -> Journal:
        """Return this journal with the workers of the present release, which is noted where it was not."""
        if release.version not in {known.version for known in self.releases}:
            return replace(self, releases=(*self.releases, release)[-MOST_RELEASES:])
        others = [known if known.version != release.version else release for known in self.releases]
        return replace(self, releases=tuple(others))

    def ended(self) -> Journal:
        """Return this journal with nothing under way."""
        return replace(self, change=None)

    def accepted(self) -> Journal:
        """Return this journal with the target of the change as the present release.

        After a deploy the version before it stands right before it; a rollback takes the version that it leaves out.
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
    """Add the digest that was noted when ``release`` was deployed."""
    noted = {known.version: known.digest for known in releases if known.archive == release.archive}
    return replace(release, digest=release.digest or noted.get(release.version))


def render_journal(journal: Journal) -> str:
    """Print the file."""
    return state_files.render(journal, FORMAT_VERSION)


def parse_journal(text: str, source: str) -> Journal:
    """Parse the file; ``parse_journal(render_journal(j), ...) == j``.

    Raises:
        FormatError: it is damaged, or a newer marsmith wrote it.
    """
    return state_files.parse(Journal, text, source, version=FORMAT_VERSION)


@dataclass(frozen=True)
class JournalFile:
    """Where the journal of one model lies.

    Attributes:
        path: ``.marsmith/deploy/<model>.json`` in the project.
        model: model name.
    """

    path: Path
    model: str

    @classmethod
    def of(cls, project: Project, model: str) -> JournalFile:
        """Return the place of the journal of ``model``, which may not exist yet."""
        return cls(_folder(project) / f"{check_model_name(model)}.json", model)

    @staticmethod
    def models(project: Project) -> list[str]:
        """Return the models that have a journal, sorted."""
        return sorted(path.stem for path in _folder(project).glob("*.json"))

    def read(self) -> Journal:
        """Read the journal; an empty one where there is none.

        Raises:
            ServerError: it is damaged, or a newer marsmith wrote it.
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
                tip=f"look what is registered (marsmith models), then forget the journal: rm {self.path}",
            ) from None

    def write(self, journal: Journal) -> None:
        """Write the journal whole or not at all, so that it is on the disk when this returns.

        Raises:
            ServerError: it cannot be written, as on a full disk; the journal before it is kept.
        """
        try:
            files.write_atomically(self.path, render_journal(journal))
        except OSError as error:
            raise ServerError(f"cannot write the journal {self.path}: {error.strerror}") from None

    def forget(self, version: str) -> None:
        """Let no rollback go back to a version by itself any more.

        Raises:
            ServerError: a deploy goes on, or one that was interrupted needs the version.
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
        """Let nobody else deploy the model meanwhile; a process that ends, in whatever way, gives the lock back.

        Args:
            wait_s: how long to wait for another deploy to end, in seconds.

        Raises:
            ServerError: another process deploys it; the message names it.
        """
        try:
            with files.lock(self.path.with_suffix(".lock"), wait_s=wait_s):
                yield
        except LockedError as error:
            raise ServerError(
                f"{self.model} is being deployed or rolled back by another process, pid {error.holder or 'unknown'}",
                tip="wait for it to end, or let this command wait: --wait SECONDS",
            ) from None


def _folder(project: Project) -> Path:
    return project.root / ".marsmith" / "deploy"
