"""The journal of a model's deploys on disk, and the lock that lets one process at a time deploy a model."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from marsmith.errors import FormatError, ServerError
from marsmith.names import check_model_name
from marsmith.project import Project
from marsmith.state.journal import Journal, parse_journal, render_journal

_POLL_S = 0.1


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
            ServerError: it is damaged.
        """
        try:
            return parse_journal(self.path.read_text(encoding="utf-8"), str(self.path))
        except FileNotFoundError:
            return Journal(self.model)
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
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w", encoding="utf-8") as file:
                file.write(render_journal(journal))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_folder(self.path.parent)
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a+") as file:
            _acquire(file, self.model, wait_s)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def _folder(project: Project) -> Path:
    return project.root / ".marsmith" / "deploy"


def sync_folder(folder: Path) -> None:
    """Make sure that a rename in ``folder`` survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _acquire(file: TextIO, model: str, wait_s: float) -> None:
    late = time.monotonic() + wait_s
    while not _try_lock(file):
        if time.monotonic() >= late:
            raise _busy(file, model)
        time.sleep(_POLL_S)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy(file: TextIO, model: str) -> ServerError:
    file.seek(0)
    return ServerError(
        f"{model} is being deployed or rolled back by another process, pid {file.read().strip() or 'unknown'}",
        tip="wait for it to end, or let this command wait: --wait SECONDS",
    )
