"""A model version stays what it was: which bytes each is bound to, and the refusal of others under its name.

Bound is a version that a server serves, or that the next start will serve, and one that a deploy can go back to.
``marsmith unregister`` lets go of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from marsmith.archive.admit import digest_of
from marsmith.archive.store import StoredArchive
from marsmith.config.server_config import model_store, served_store
from marsmith.errors import MarsmithError, OtherBytesError, ProjectError
from marsmith.names import ModelVersion
from marsmith.project import Project, find_project
from marsmith.state import served_file
from marsmith.state.journal import JournalFile, Release
from marsmith.state.served import ServerState

_SHOWN = 16


@dataclass(frozen=True)
class Binding:
    """What a version is bound to.

    Attributes:
        version: which.
        archive: the file name of its archive in the model store.
        digest: SHA-256 of that file, in hex.
        registered: whether a server has it, or the next start will; else only the journal of deploys goes back to it.
        journalled: whether that journal does.
        ours: whether marsmith made the archive; None where that was not noted.
    """

    version: ModelVersion
    archive: str
    digest: str
    registered: bool
    journalled: bool
    ours: bool | None = None

    def refusal(self, file: Path, digest: str) -> OtherBytesError:
        """Say that ``file``, which has another digest, must not have this version's name."""
        forget = " --forget" if self.journalled else ""
        how = "registered" if self.registered else "journalled, so that a rollback can go back to it,"
        return OtherBytesError(
            f"{self.version} is {how} with SHA-256 {shown(self.digest)} ({self.archive}), and {file} has"
            f" {shown(digest)}",
            tip="give the new archive a version number of its own, or let go of the version that is there:"
            f" marsmith unregister {self.version}{forget}",
        )


def shown(digest: str) -> str:
    """Return as much of a digest as tells it from others."""
    return f"{digest[:_SHOWN]}..."


def binding(project: Project, version: ModelVersion) -> Binding | None:
    """Return what a version is bound to; None for one that no server serves and no deploy goes back to.

    Raises:
        ServerError: the journal of its deploys is damaged.
    """
    return _binding(project, served_file.read(project), version)


def bound_digest(project: Project, version: ModelVersion) -> str | None:
    """Return the SHA-256 in hex that the archive of a version must have; None where it may have any."""
    bound = binding(project, version)
    return bound.digest if bound else None


def check_bytes(project: Project, version: ModelVersion, file: Path, digest: str) -> None:
    """Refuse an archive under the name of a version that is bound to other bytes.

    Raises:
        OtherBytesError: with both digests.
    """
    bound = binding(project, version)
    if bound and bound.digest != digest:
        raise bound.refusal(file, digest)


def check_stored(project: Project, before: ServerState | None, stored: StoredArchive) -> None:
    """Refuse to serve an archive whose version is bound to other bytes.

    Args:
        project: whose server starts.
        before: what the server before served; None where that is to be forgotten.
        stored: the archive.

    Raises:
        OtherBytesError: with both digests.
    """
    bound = _binding(project, before or ServerState(), ModelVersion(*stored.version))
    if bound and bound.digest != (digest := digest_of(stored.archive)):
        raise bound.refusal(stored.path, digest)


def check_release(model: str, release: Release, file: Path, digest: str) -> None:
    """Refuse a file that has other bytes than those that the journal of deploys notes for a version.

    Raises:
        OtherBytesError: with both digests.
    """
    if release.digest not in {None, digest}:
        raise OtherBytesError(
            f"{model}:{release.version} is journalled with SHA-256 {shown(str(release.digest))}, and {file} has"
            f" {shown(digest)}",
            tip="put the right archive back under this name, or go to another version; where it is registered still,"
            f" `marsmith set-default {model} {release.version}` goes to it without its file",
        )


def guard(target: Path, version: ModelVersion) -> Callable[[str], None] | None:
    """Return what is to be asked, with its digest, before a new archive gets the name ``target``; None for nothing.

    In the model store of a project a new archive must not take the place of one that is bound, whatever its file is
    called, nor bring other bytes under a version that is bound.
    """
    bound = [each for project in _projects_storing(target) for each in _all(project)]
    meant = [each for each in bound if each.version == version or each.archive == target.name]
    if not meant:
        return None

    def check(digest: str) -> None:
        for each in meant:
            if each.digest != digest:
                raise each.refusal(target, digest)

    return check


def _binding(project: Project, state: ServerState, version: ModelVersion) -> Binding | None:
    return next((bound for bound in _of_model(project, state, version.name) if bound.version == version), None)


def _of_model(project: Project, state: ServerState, model: str) -> Iterator[Binding]:
    """Give what is bound of one model; what is registered comes first."""
    served = state.models.get(model)
    releases = [release for release in JournalFile.of(project, model).read().needed() if release.digest]
    journalled = {release.version for release in releases}
    for number, known in served.versions.items() if served else ():
        version, name = ModelVersion(model, number), known.archive.rpartition("/")[2]
        if known.bytes:
            yield Binding(version, name, known.bytes.sha256, True, number in journalled, known.bytes.ours)
    for release in releases:
        yield Binding(ModelVersion(model, release.version), release.archive, str(release.digest), False, True)


def _all(project: Project) -> Iterator[Binding]:
    state = served_file.read(project)
    models = {*state.models, *JournalFile.models(project)}
    return (each for model in sorted(models) for each in _of_model(project, state, model))


def _projects_storing(target: Path) -> list[Project]:
    """Return the projects whose model store the file would lie in: the one around it, and the one at work."""
    found: dict[Path, Project] = {}
    folder = target.resolve().parent
    for start in (folder, None):
        with suppress(ProjectError):
            project = find_project(start)
            found[project.root] = project
    return [project for project in found.values() if folder in _stores(project)]


def _stores(project: Project) -> set[Path]:
    stores = set()
    for store in (model_store, served_store):
        with suppress(MarsmithError, OSError):
            stores.add(store(project).resolve())
    return stores
