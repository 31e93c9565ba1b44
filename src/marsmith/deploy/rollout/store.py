"""The archive of a version that is deployed: found, put into the model store where it lies elsewhere, and taken back.

Nothing that somebody else has put into the store is ever replaced or removed, and no only copy of an archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from marsmith import files
from marsmith.archive import Archive
from marsmith.archive.signature import signature_path
from marsmith.archive.staging import remove_litter, staged
from marsmith.archive.store import archives_in
from marsmith.config.server_config import served_store
from marsmith.errors import ArchiveError, FormatError, OtherBytesError, ServerError, UsageError
from marsmith.names import ModelVersion, check_model_version
from marsmith.project import Project
from marsmith.server.registration import archive_in_store
from marsmith.state.journal import Change, Copy, JournalFile
from marsmith.state.version_bytes import shown

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Deployable:
    """An archive file that can be deployed.

    Attributes:
        archive: opened, its structure checked.
        file_name: the name that it has, or is to have, in the model store.
        digest: SHA-256 of the file in hex.
        stored: whether it lies outside the store and must be copied.
    """

    archive: Archive
    file_name: str
    digest: str
    stored: bool

    @property
    def version(self) -> ModelVersion:
        """What it is an archive of."""
        return ModelVersion(self.archive.manifest.model_name, self.archive.manifest.model_version)


def model_of(project: Project, reference: str) -> str:
    """Return the model that a deploy of ``reference`` changes.

    Of a deploy that was interrupted the journal says it: its archive may be gone by now.

    Raises:
        UsageError: there is no such archive, and no deploy of it was interrupted.
        ArchiveError: it does not open.
    """
    for model in JournalFile.models(project):
        # A damaged journal is refused when its own model is deployed.
        with suppress(ServerError):
            change = JournalFile.of(project, model).read().change
            if change and _means(reference, change):
                return model
    return Archive.open(_path(project, reference, None)).manifest.model_name


def find(project: Project, reference: str, interrupted: Change | None = None) -> Deployable:
    """Find an archive: by its path, or by its name in the model store, with or without ``.mar``.

    Args:
        project: whose store.
        reference: as a user names it.
        interrupted: an earlier deploy: where it has copied what is named, and the original is gone, the copy is meant.

    Raises:
        UsageError: there is none, it is a folder, or the store has the same version with other bytes.
        ArchiveError: it does not open.
    """
    path = _path(project, reference, interrupted)
    archive = Archive.open(path)
    if archive.kind == "folder":
        raise UsageError(f"{path} is a folder: TorchServe would serve whatever is in it later", tip="marsmith repack")
    manifest = archive.manifest
    suffix = "tar.gz" if archive.kind == "tar.gz" else "mar"
    name = f"{manifest.model_name}-{check_model_version(manifest.model_version)}.{suffix}"
    digest = archive.digest()
    if path.parent == served_store(project).resolve():
        return Deployable(archive, path.name, digest, stored=False)
    same = _same_version(project, archive, name)
    if same is None:
        return Deployable(archive, name, digest, stored=True)
    if (there := same.digest()) != digest:
        raise OtherBytesError(
            f"{same.path} is {manifest.model_name}:{manifest.model_version} as well, with SHA-256 {shown(there)}, and"
            f" {path} has {shown(digest)}",
            tip="give the new archive a version number of its own, or take the other one out of the model store",
        )
    return Deployable(archive, same.path.name, digest, stored=False)


def copy_into_store(project: Project, deployable: Deployable, on_copy: Callable[[Copy], None]) -> None:
    """Copy an archive into the model store, and its signature, each whole or not at all.

    Args:
        project: whose store.
        deployable: the archive.
        on_copy: told of each file before it gets its name.

    Raises:
        ServerError: one cannot be written, changed meanwhile, or somebody else has put another file there.
    """
    target = served_store(project) / deployable.file_name
    source = deployable.archive.path
    try:
        if signature_path(source).is_file():
            _put(signature_path(source), signature_path(target), files.sha256(signature_path(source)), on_copy)
        # Last: from now on a server may load it.
        _put(source, target, deployable.digest, on_copy)
    except OSError as error:
        raise ServerError(f"cannot copy {source} into the model store: {error.strerror or error}") from None


def take_back(project: Project, change: Change) -> str | None:
    """Remove what a change has put into the store; return in words what is left there, and why.

    Left is what is not the very file that was put there, and what has no original any more.
    """
    remove_litter(served_store(project) / change.target.archive)
    remove_litter(signature_path(served_store(project) / change.target.archive))
    if change.stored and not change.copies and change.source is None:
        return f"{change.target.archive} is left in the model store: an earlier marsmith did not note whose it is"
    left = [why for copy in change.copies if (why := _take_back(copy))]
    return "; ".join(left) or None


def _path(project: Project, reference: str, interrupted: Change | None) -> Path:
    """Return the archive file that is meant."""
    if Path(reference).exists():
        return Path(reference).resolve()
    try:
        return archive_in_store(project, reference)
    except UsageError:
        for path in _known_paths(project, reference, interrupted):
            if path.exists():
                return path.resolve()
        raise


def _known_paths(project: Project, reference: str, interrupted: Change | None) -> Iterator[Path]:
    if interrupted and interrupted.source and _means(reference, interrupted):
        yield Path(interrupted.source)
        yield served_store(project) / interrupted.target.archive


def _means(reference: str, change: Change) -> bool:
    """Whether a reference names what a change deploys: by where it came from, or by its name in the model store."""
    name = Path(reference).name
    by_path = change.source is not None and str(Path(reference).resolve()) == change.source
    return by_path or change.target.archive in {name, f"{name}.mar"}


def _same_version(project: Project, archive: Archive, name: str) -> Archive | None:
    """Return the archive in the store that is the same version, or would have the same name."""
    wanted = (archive.manifest.model_name, archive.manifest.model_version)
    for path in archives_in(served_store(project), "all"):
        try:
            found = Archive.open(path)
        except (ArchiveError, FormatError):
            if path.name == name:
                raise
            continue
        if path.name == name or (found.manifest.model_name, found.manifest.model_version) == wanted:
            return found
    return None


def _put(source: Path, target: Path, digest: str, on_copy: Callable[[Copy], None]) -> None:
    """Copy a file to a name that nothing has; what is there with the same bytes stays.

    Raises:
        ServerError: it does not have the digest any more, or something else is there.
        OSError: it cannot be written.
    """
    with staged(target) as stage:
        if files.copy(source, stage.path) != digest:
            raise ServerError(f"{source} changed while it was copied", tip="deploy it again")
        stage.sync()
        if not target.exists():
            on_copy(Copy(str(target), str(source), digest, stage.path.stat().st_ino))
        try:
            stage.publish(force=False)
        except FileExistsError:
            if files.sha256(target) != digest:
                raise ServerError(
                    f"{target} is there already, with other bytes than {source}",
                    tip=f"look at whose it is, then move it away: mv {target} ELSEWHERE",
                ) from None


def _take_back(copy: Copy) -> str | None:
    path = Path(copy.path)
    with suppress(FileNotFoundError):
        if path.stat().st_ino != copy.inode or files.sha256(path) != copy.sha256:
            return f"{path} is left: it is not what was put there"
        if not _holds(Path(copy.source), copy.sha256):
            return f"{path} is left: {copy.source}, which it was copied from, is gone"
        path.unlink()
    return None


def _holds(path: Path, digest: str) -> bool:
    try:
        return files.sha256(path) == digest
    except OSError:
        return False
