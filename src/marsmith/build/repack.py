"""Convert an archive of another tool into one of ours: stored, with digests, and with unchanged files.

An archive of ours can be given the handlers of today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from marsmith.archive import manifest as manifest_format
from marsmith.archive import sums
from marsmith.archive.admit import Policy, admit
from marsmith.archive.manifest import Manifest
from marsmith.archive.members import Member
from marsmith.archive.read import Archive
from marsmith.archive.signature import signature_path
from marsmith.archive.staging import staged
from marsmith.archive.write import write_archive
from marsmith.build.renewal import renewed
from marsmith.errors import BuildError
from marsmith.file_errors import described
from marsmith.names import ModelVersion, archive_file_name, check_model_version
from marsmith.state.version_bytes import guard

ENVIRONMENT_FILE = "MAR-INF/environment.txt"
_REWRITTEN = frozenset({manifest_format.FILE_NAME, sums.FILE_NAME})


@dataclass(frozen=True)
class Repacked:
    """A finished archive.

    Attributes:
        path: path of the archive.
        sha256: SHA-256 of the file in hex.
        needs_signature: whether the old archive was signed and has other bytes, so that its signature is not valid for
            the new one.
    """

    path: Path
    sha256: str
    needs_signature: bool = False


def repack(
    old: Path,
    *,
    output: Path | None = None,
    version: str | None = None,
    force: bool = False,
    environment: Path | None = None,
    handlers: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Repacked:
    """Write the content of an archive as one of ours; every file and all fields of the manifest are kept.

    Two archives with the same files give the same bytes: torch-model-archiver's own additions (date, version) are
    removed.

    Args:
        old: a ``.mar``, a ``.tar.gz`` or a folder.
        version: the model version of the new archive; None: that of the old one.
        output: the new archive; None: ``<name>-<version>.mar`` beside the old one.
        force: whether to replace ``output``; it may be ``old`` itself.
        environment: a file that becomes ``MAR-INF/environment.txt``.
        handlers: folder whose handler of the same name, with all that it imports, takes the place of the old one.
        on_progress: called with the written and the total number of bytes of content.

    Raises:
        ArchiveError: ``old`` is damaged or hostile, or does not match its digests.
        OtherBytesError: ``output`` is in a model store, and its version is bound to another digest there.
        UsageError: no request could name the version.
        BuildError: ``output`` exists and ``force`` is not set, the handler cannot be renewed, or the disk is full or
            refuses.
    """
    # Archives of other tools are accepted here, signed or not; the new archive is admitted again wherever it is used.
    archive = admit(old, Policy()).archive
    manifest = replace(archive.manifest, model_version=version) if version else archive.manifest
    check_model_version(manifest.model_version)
    target = output or old.parent / archive_file_name(manifest.model_name, manifest.model_version)
    if target.exists() and not force:
        raise BuildError(f"{target} already exists", tip="--force replaces it, --output FILE takes another name")
    was_signed = archive.kind != "folder" and signature_path(old).exists()
    with _contents(archive, target) as members:
        if environment is not None:
            members[ENVIRONMENT_FILE] = environment
        named = (
            renewed(manifest, members, handlers)
            if handlers is not None
            else [Member(name, path) for name, path in members.items()]
        )
        accept = guard(target, ModelVersion(manifest.model_name, manifest.model_version))
        digest = write_archive(_ours(manifest), named, target, force=force, on_progress=on_progress, accept=accept)
    return Repacked(target, digest, needs_signature=was_signed and not signature_path(target).exists())


def _ours(manifest: Manifest) -> Manifest:
    return replace(manifest, created_on=None, archiver_version=None)


@contextmanager
def _contents(archive: Archive, target: Path) -> Iterator[dict[str, Path]]:
    """Yield a file for every member that is kept: from a folder, or unpacked temporarily beside the target."""
    kept = [name for name in archive.members if name not in _REWRITTEN]
    if archive.kind == "folder":
        yield {name: archive.path / name for name in kept}
        return
    try:
        scratch = staged(target, folder=True)
        with scratch as stage:
            folder = archive.extract(stage.path / "content")
            yield {name: folder / name for name in kept}
    except OSError as error:
        description = described(error, target)
        raise BuildError(description.message, tip=description.tip) from None
