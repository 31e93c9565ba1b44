"""Write a model archive: deterministic, atomic, and with every source read once.

The manifest comes first, then the members sorted by name, and ``MAR-INF/SHA256SUMS`` last, because it contains the
digests of all others. ``docs/reference/archive-format.md`` is the specification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from marsmith import files
from marsmith.archive import manifest as manifest_format
from marsmith.archive import sums
from marsmith.archive.copier import Content, Copier, open_source
from marsmith.archive.folder import FolderWriter
from marsmith.archive.manifest import Manifest, render_manifest
from marsmith.archive.members import Member
from marsmith.archive.plan import PlannedMember, completed, planned
from marsmith.archive.signature import remove_stale_signature
from marsmith.archive.staging import Staged, staged
from marsmith.archive.tar_writer import TarWriter
from marsmith.archive.zip_writer import ZipWriter
from marsmith.errors import BuildError
from marsmith.file_errors import described

ArchiveFormat = Literal["zip-store", "default", "tgz", "no-archive"]
SUFFIXES: dict[ArchiveFormat, str] = {"zip-store": ".mar", "default": ".mar", "tgz": ".tar.gz", "no-archive": ""}

# Weights are nearly incompressible: deflating saves a few per cent and takes half a minute per gigabyte.
_WEIGHTS = (".pt", ".pth", ".bin", ".onnx", ".safetensors", ".npy", ".npz", ".h5", ".pkl", ".ckpt", ".engine", ".so")
# Number of bytes after which the disk starts to write: early enough to finish soon after the last byte.
_WRITE_BACK_BYTES = 8 << 20


class _Writer(Protocol):
    def add(self, name: str, source: BinaryIO, size: int, *, deflate: bool = False) -> Content: ...

    def close(self) -> None: ...


def write_archive(
    manifest: Manifest,
    members: Iterable[Member],
    target: Path,
    *,
    archive_format: ArchiveFormat = "zip-store",
    force: bool = False,
    root: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    accept: Callable[[str], None] | None = None,
    digest: bool = True,
) -> str:
    """Write an archive and return the SHA-256, in hex, of the finished file.

    Args:
        manifest: manifest; its date, tool and ``marsmith`` key are filled in if they are None.
        members: all members except the manifest and the digests, in any order.
        target: file to create; a folder for ``no-archive``. Its parent folder must exist.
        archive_format: ``zip-store`` stores every member, and its bytes are the same everywhere. ``default`` and
            ``tgz`` deflate small members that are not weights. ``no-archive`` creates a folder.
        force: whether to replace an existing target.
        root: folder that must contain every source, after resolving links; None: any folder.
        on_progress: called with the written and the total number of bytes of content.
        accept: called with the digest before the archive gets its name; an exception prevents this.
        digest: whether to read the finished file once more for its digest, which takes half the time of a large
            archive. Its members have digests in any case. With ``accept`` the file is always read.

    Returns:
        The digest of the file; for ``no-archive`` that of its ``MAR-INF/SHA256SUMS``, which covers the rest. Empty if
        no one wanted it.

    Raises:
        BuildError: invalid members, an existing target without ``force``, a full disk, or no permission; the folder of
            ``target`` is unchanged.
    """
    request = _Request(manifest, tuple(members), target, archive_format, force, root, on_progress)
    with _built(request) as built:
        found = built.digest() if digest or accept else ""
        if accept:
            accept(found)
        built.publish(force=force)
    return found


@dataclass(frozen=True)
class _Request:
    manifest: Manifest
    members: tuple[Member, ...]
    target: Path
    archive_format: ArchiveFormat
    force: bool
    root: Path | None
    on_progress: Callable[[int, int], None] | None


@dataclass(frozen=True)
class _Built:
    """A complete archive on the disk that still has its hidden name."""

    stage: Staged
    digests: Mapping[str, str]

    def digest(self) -> str:
        return _folder_digest(self.digests) if self.stage.path.is_dir() else files.sha256(self.stage.path)

    def publish(self, *, force: bool) -> None:
        target, is_file = self.stage.target, not self.stage.path.is_dir()
        try:
            self.stage.publish(force=force)
        except FileExistsError:
            # Another build of the same archive finished first, which is fine if the result is equal.
            if _digest_of(target) != self.digest():
                raise BuildError(
                    f"{target} was made by something else while it was being built", tip="--force replaces it"
                ) from None
        if is_file:
            # A signature of the replaced archive would be taken for one of this archive.
            remove_stale_signature(target)


class _Progress:
    """Counts copied bytes, reports them, and keeps the disk busy."""

    def __init__(self, stage: Staged, total: int, on_progress: Callable[[int, int], None] | None) -> None:
        self._stage = stage
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._begun = 0

    def __call__(self, size: int) -> None:
        self._done += size
        if self._done - self._begun >= _WRITE_BACK_BYTES:
            self._begun = self._done
            self._stage.begin_sync()
        if self._on_progress is not None:
            self._on_progress(min(self._done, self._total), self._total)


@contextmanager
def _built(request: _Request) -> Iterator[_Built]:
    """Check everything, then write the archive under a hidden name; it is removed at the end unless published."""
    manifest = completed(request.manifest)
    rendered = render_manifest(manifest).encode()
    first = PlannedMember(Member(manifest_format.FILE_NAME, rendered), len(rendered))
    plan = [first, *planned(manifest, request.members, request.root)]
    _check_target(request.target, request.force)
    is_folder = request.archive_format == "no-archive"
    with _disk_errors(request.target), staged(request.target, folder=is_folder) as stage:
        progress = _Progress(stage, sum(item.size for item in plan), request.on_progress)
        with Copier(progress) as copier:
            digests = _write(stage, plan, request.archive_format, manifest, copier)
        stage.sync()
        yield _Built(stage, digests)


def _write(
    stage: Staged, plan: Sequence[PlannedMember], archive_format: ArchiveFormat, manifest: Manifest, copier: Copier
) -> dict[str, str]:
    """Write all members, then their digests; return the digests."""
    with _open_writer(stage, archive_format, manifest, copier) as writer:
        digests: dict[str, str] = {}
        for item in plan:
            name = item.member.name
            deflate = archive_format in {"default", "tgz"} and not _is_weights(name, manifest)
            with open_source(item.member.source) as source:
                digests[name] = writer.add(name, source, item.size, deflate=deflate).sha256
        listing = sums.render_sums(digests).encode()
        with open_source(listing) as source:
            writer.add(sums.FILE_NAME, source, len(listing))
        writer.close()
    return digests


def _folder_digest(digests: Mapping[str, str]) -> str:
    return hashlib.sha256(sums.render_sums(digests).encode()).hexdigest()


@contextmanager
def _open_writer(stage: Staged, archive_format: ArchiveFormat, manifest: Manifest, copier: Copier) -> Iterator[_Writer]:
    if archive_format == "no-archive":
        yield FolderWriter(stage.path, copier)
        return
    with open(stage.descriptor, "r+b", closefd=False) as file:
        if archive_format == "tgz":
            yield TarWriter(file, copier, top=manifest.model_name)
        else:
            yield ZipWriter(file, copier)


def _is_weights(name: str, manifest: Manifest) -> bool:
    return name == manifest.serialized_file or name.lower().endswith(_WEIGHTS)


def _check_target(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise BuildError(f"{target.parent}: no such folder", tip=f"mkdir -p {target.parent}")
    if (target.exists() or target.is_symlink()) and not force:
        raise BuildError(f"{target} already exists", tip="--force replaces it")
    if target.is_dir() and any(target.iterdir()) and not (target / manifest_format.FILE_NAME).is_file():
        raise BuildError(
            f"{target} is a folder and not a model archive, so it is not replaced", tip="choose another name"
        )


def _digest_of(path: Path) -> str:
    """Return the digest of a finished archive, as ``write_archive`` does."""
    if not path.is_dir():
        return files.sha256(path)
    inside = [file for file in path.rglob("*") if file.is_file()]
    digests = {file.relative_to(path).as_posix(): files.sha256(file) for file in inside}
    digests.pop(sums.FILE_NAME, None)
    return _folder_digest(digests)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Convert errors of the disk into a BuildError."""
    try:
        yield
    except OSError as error:
        description = described(error, target)
        raise BuildError(description.message, tip=description.tip) from None
