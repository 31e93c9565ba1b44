"""The archive of a version that is deployed: found, and copied into the model store where it lies elsewhere."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from marsmith.archive import Archive
from marsmith.deploy_journal import sync_folder
from marsmith.errors import ArchiveError, FormatError, ServerError, UsageError
from marsmith.model_store import archives_in
from marsmith.names import check_model_version
from marsmith.registration import archive_in_store
from marsmith.server_config import served_store
from marsmith.settings import Project
from marsmith.signature import copy_signature, remove_signature


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


def find(project: Project, reference: str) -> Deployable:
    """Find an archive: by its path, or by its name in the model store, with or without ``.mar``.

    Raises:
        UsageError: there is none, it is a folder, or the store has the same version with other bytes.
        ArchiveError: it does not open.
    """
    path = Path(reference).resolve() if Path(reference).exists() else archive_in_store(project, reference)
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
    if same.digest() != digest:
        raise UsageError(
            f"{same.path} is {manifest.model_name}:{manifest.model_version} as well, with other bytes than {path}",
            tip="give the new archive a version of its own",
        )
    return Deployable(archive, same.path.name, digest, stored=False)


def copy_into_store(project: Project, deployable: Deployable) -> None:
    """Copy an archive with its signature into the model store, whole or not at all.

    Raises:
        ServerError: it cannot be written, or changed meanwhile.
    """
    target = served_store(project) / deployable.file_name
    temporary = _temporary(target)
    try:
        shutil.copyfile(deployable.archive.path, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if Archive.open(temporary).digest() != deployable.digest:
            raise ServerError(f"{deployable.archive.path} changed while it was copied", tip="deploy it again")
        # First: an archive that is there without its signature would be refused where one is required.
        copy_signature(deployable.archive.path, target)
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise ServerError(f"cannot copy {deployable.archive.path} into the model store: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def remove_copy(project: Project, file_name: str) -> None:
    """Remove a copy that was made, or begun, in the model store, with its signature."""
    target = served_store(project) / file_name
    for path in (target, _temporary(target)):
        path.unlink(missing_ok=True)
    remove_signature(target)


def _temporary(target: Path) -> Path:
    # Hidden, so that no server takes it for an archive; the same for every process, so that the next can remove it.
    return target.with_name(f".{target.name}.deploying")


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
