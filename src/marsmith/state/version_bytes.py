"""Bindings: the digest that each model version is bound to, and the refusal of other archives under its name.

A version is bound if a server serves it, if the next start will serve it, or if a rollback can return to it. ``marsmith
unregister`` releases it.
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
    """Binding of a version.

    Attributes:
        version: the version.
        archive: file name of its archive in the model store.
        digest: SHA-256 of the file in hex.
        registered: whether a server has it, or the next start will; otherwise only the journal of deploys refers to it.
        journalled: whether the journal refers to it.
        ours: whether marsmith built the archive; None if it was not recorded.
    """

    version: ModelVersion
    archive: str
    digest: str
    registered: bool
    journalled: bool
    ours: bool | None = None

    def refusal(self, file: Path, digest: str) -> OtherBytesError:
        """Return the error for ``file``, which has another digest and must not have this version's name."""
        forget = " --forget" if self.journalled else ""
        how = "registered" if self.registered else "journalled, so that a rollback can go back to it,"
        return OtherBytesError(
            f"{self.version} is {how} with SHA-256 {shown(self.digest)} ({self.archive}), and {file} has"
            f" {shown(digest)}",
            tip="give the new archive a version number of its own, or unregister the present version:"
            f" marsmith unregister {self.version}{forget}",
        )


def shown(digest: str) -> str:
    """Return the first digits of a digest, enough to distinguish it."""
    return f"{digest[:_SHOWN]}..."


def binding(project: Project, version: ModelVersion) -> Binding | None:
    """Return the binding of a version; None if it is not served and no rollback can return to it.

    Raises:
        ServerError: the journal of its deploys is damaged.
    """
    return _binding(project, served_file.read(project), version)


def bound_digest(project: Project, version: ModelVersion) -> str | None:
    """Return the required SHA-256 of a version's archive in hex; None for any."""
    bound = binding(project, version)
    return bound.digest if bound else None


def check_bytes(project: Project, version: ModelVersion, file: Path, digest: str) -> None:
    """Refuse an archive under the name of a version that is bound to another digest.

    Raises:
        OtherBytesError: the digests differ; the message has both.
    """
    bound = binding(project, version)
    if bound and bound.digest != digest:
        raise bound.refusal(file, digest)


def check_stored(project: Project, before: ServerState | None, stored: StoredArchive) -> None:
    """Refuse to serve an archive whose version is bound to another digest.

    Args:
        project: project of the server.
        before: state of the previous server; None if it is ignored.
        stored: the archive.

    Raises:
        OtherBytesError: the digests differ; the message has both.
    """
    bound = _binding(project, before or ServerState(), ModelVersion(*stored.version))
    if bound and bound.digest != (digest := digest_of(stored.archive)):
        raise bound.refusal(stored.path, digest)


def check_release(model: str, release: Release, file: Path, digest: str) -> None:
    """Refuse a file with another digest than in the journal of deploys.

    Raises:
        OtherBytesError: the digests differ; the message has both.
    """
    if release.digest not in {None, digest}:
        raise OtherBytesError(
            f"{model}:{release.version} is journalled with SHA-256 {shown(str(release.digest))}, and {file} has"
            f" {shown(digest)}",
            tip="put the right archive back under this name, or go to another version; where it is registered still,"
            f" `marsmith set-default {model} {release.version}` goes to it without its file",
        )


def guard(target: Path, version: ModelVersion) -> Callable[[str], None] | None:
    """Return a check of the digest of a new archive at ``target``; None if none is necessary.

    In a project's model store a new archive must not replace a bound archive, whatever its file name, and must not have
    the version of a bound archive with another digest.
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
    """Yield the bindings of one model, registered versions first."""
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
    """Return the projects whose model store contains the path: the one around it, and the one at work."""
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
