"""The archive of a deploy in the model store: find it, copy it there if it lies elsewhere, and take the copy back.

A file that someone else has put into the store is never replaced or removed. The only copy of an archive is never
removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from marsmith import files
from marsmith.archive import Archive
from marsmith.archive.admit import digest_of, note_digest
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


@dataclass(frozen=True)
class Deployable:
    """An archive file that can be deployed.

    Attributes:
        archive: the opened archive, its structure checked.
        file_name: name of the file in the model store.
        digest: SHA-256 of the file in hex.
        stored: whether the file lies outside the store and must be copied.
    """

    archive: Archive
    file_name: str
    digest: str
    stored: bool

    @property
    def version(self) -> ModelVersion:
        """Model name and version of the archive."""
        return ModelVersion(self.archive.manifest.model_name, self.archive.manifest.model_version)


def model_of(project: Project, reference: str) -> str:
    """Return the model that a deploy of ``reference`` changes.

    For an interrupted deploy the journal gives the model: its archive may be gone by now.

    Raises:
        UsageError: no such archive exists, and no deploy of it was interrupted.
        ArchiveError: the archive does not open.
    """
    for model in JournalFile.models(project):
        # A damaged journal is refused when its own model is deployed.
        with suppress(ServerError):
            change = JournalFile.of(project, model).read().change
            if change and _means(reference, change):
                return model
    return Archive.open(_path(served_store(project), reference, None)).manifest.model_name


def find(store: Path, reference: str, interrupted: Change | None = None) -> Deployable:
    """Find an archive by its path, or by its name in the model store, with or without ``.mar``.

    Args:
        store: the model store.
        reference: path or name as the user gives it.
        interrupted: an earlier deploy. If it has copied the archive and the original is gone, the copy is used.

    Raises:
        UsageError: no archive is found, it is a folder, or the store has the same version with another digest.
        ArchiveError: the archive does not open.
    """
    path = _path(store, reference, interrupted)
    archive = Archive.open(path)
    if archive.kind == "folder":
        raise UsageError(
            f"{path} is a folder: TorchServe would serve later changes of its files too", tip="marsmith repack"
        )
    manifest = archive.manifest
    suffix = "tar.gz" if archive.kind == "tar.gz" else "mar"
    name = f"{manifest.model_name}-{check_model_version(manifest.model_version)}.{suffix}"
    digest = digest_of(archive)
    if path.parent == store.resolve():
        return Deployable(archive, path.name, digest, stored=False)
    same = _same_version(store, archive, name)
    if same is None:
        return Deployable(archive, name, digest, stored=True)
    if (there := digest_of(same)) != digest:
        raise OtherBytesError(
            f"{same.path} is {manifest.model_name}:{manifest.model_version} as well, with SHA-256 {shown(there)}, and"
            f" {path} has {shown(digest)}",
            tip="give the new archive a version number of its own, or take the other one out of the model store",
        )
    return Deployable(archive, same.path.name, digest, stored=False)


def copy_into_store(store: Path, deployable: Deployable, on_copy: Callable[[Copy], None]) -> None:
    """Copy an archive and its signature into the model store. Each file is copied completely or not at all.

    Args:
        store: the model store.
        deployable: the archive.
        on_copy: called for each file before it gets its name.

    Raises:
        ServerError: a file cannot be written or changed meanwhile, or someone else has put another file there.
    """
    target = store / deployable.file_name
    source = deployable.archive.path
    try:
        if signature_path(source).is_file():
            _put(signature_path(source), signature_path(target), files.sha256(signature_path(source)), on_copy)
        # The archive is copied last, because from then on a server may load it.
        _put(source, target, deployable.digest, on_copy)
    except OSError as error:
        raise ServerError(f"cannot copy {source} into the model store: {error.strerror or error}") from None


def take_back(store: Path, change: Change) -> str | None:
    """Remove the files that a change has put into the store; return which ones are left, and why.

    A file is left if it is not the file that was copied, or if the original does not exist any more.
    """
    remove_litter(store / change.target.archive)
    remove_litter(signature_path(store / change.target.archive))
    if change.stored and not change.copies and change.source is None:
        return f"{change.target.archive} is left in the model store: an earlier marsmith did not record its owner"
    return take_back_copies(change.copies)


def take_back_copies(copies: Iterable[Copy]) -> str | None:
    """Remove files that were copied into the store; return which ones are left, and why."""
    return "; ".join(why for copy in copies if (why := _take_back(copy))) or None


def _path(store: Path, reference: str, interrupted: Change | None) -> Path:
    """Return the archive file that the reference names."""
    if Path(reference).exists():
        return Path(reference).resolve()
    try:
        return archive_in_store(store, reference)
    except UsageError:
        for path in _known_paths(store, reference, interrupted):
            if path.exists():
                return path.resolve()
        raise


def _known_paths(store: Path, reference: str, interrupted: Change | None) -> Iterator[Path]:
    if interrupted and interrupted.source and _means(reference, interrupted):
        yield Path(interrupted.source)
        yield store / interrupted.target.archive


def _means(reference: str, change: Change) -> bool:
    """Return whether a reference names a change's archive, by its original path or its name in the model store."""
    name = Path(reference).name
    by_path = change.source is not None and str(Path(reference).resolve()) == change.source
    return by_path or change.target.archive in {name, f"{name}.mar"}


def _same_version(store: Path, archive: Archive, name: str) -> Archive | None:
    """Return the archive in the store that is the same version, or has the same file name."""
    wanted = (archive.manifest.model_name, archive.manifest.model_version)
    for path in archives_in(store, "all"):
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
    """Copy a file to an unused name. An existing file with the same digest stays.

    Raises:
        ServerError: the source has another digest now, or the target is another file.
        OSError: the file cannot be written.
    """
    with staged(target) as stage:
        inode = stage.path.stat().st_ino
        if files.copy(source, stage.path) != digest:
            raise ServerError(f"{source} changed while it was copied", tip="deploy it again")
        stage.sync()
        if not target.exists():
            on_copy(Copy(str(target), str(source), digest, inode))
        try:
            stage.publish(force=False)
            note_digest(target, inode, digest)
        except FileExistsError:
            if files.sha256(target) != digest:
                raise ServerError(
                    f"{target} is there already, with other bytes than {source}",
                    tip=f"check who needs it, then move it away: mv {target} ELSEWHERE",
                ) from None


def _take_back(copy: Copy) -> str | None:
    path = Path(copy.path)
    with suppress(FileNotFoundError):
        if path.stat().st_ino != copy.inode or files.sha256(path) != copy.sha256:
            return f"{path} is left: it is not the file that was copied there"
        if not _holds(Path(copy.source), copy.sha256):
            return f"{path} is left: {copy.source}, which it was copied from, is gone"
        path.unlink()
    return None


def _holds(path: Path, digest: str) -> bool:
    try:
        return files.sha256(path) == digest
    except OSError:
        return False
