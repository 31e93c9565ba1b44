"""Writing a model archive: same members, same bytes; never half a file; every source read once.

The manifest comes first, then the members sorted by name, and ``MAR-INF/SHA256SUMS`` last, since it holds the digests
of all the others. ``docs/reference/archive-format.md`` is the specification.
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

# Their numbers are noise: deflating saves a few per cent and costs half a minute a gigabyte.
_WEIGHTS = (".pt", ".pth", ".bin", ".onnx", ".safetensors", ".npy", ".npz", ".h5", ".pkl", ".ckpt", ".engine", ".so")
# How much is written before the disk is set to work: early enough for it to be done soon after the last byte.
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
        manifest: its date, tool and ``marsmith`` key are filled in where they are None.
        members: everything but the manifest and the digests, in any order.
        target: the file to make; a folder for ``no-archive``. Its own folder must exist.
        archive_format: ``zip-store`` stores every member, and its bytes are the same everywhere; ``default`` deflates
            small members that are no weights, ``tgz`` too; ``no-archive`` makes a folder.
        force: replace an existing target.
        root: every source must lie in this folder, links followed; None: anywhere.
        on_progress: is told bytes of content written, and bytes in all.
        accept: is told the digest before the archive gets its name; what it raises keeps the archive from it.
        digest: whether the finished file is read once more for its digest, which takes half the time of a large
            archive; its members have their digests in it all the same. With ``accept`` it always is.

    Returns:
        The digest of the file; for ``no-archive`` that of its ``MAR-INF/SHA256SUMS``, which covers the rest. Empty if
        nobody wanted it.

    Raises:
        BuildError: wrong members, an existing target without ``force``, a full disk, no permission; the folder of
            ``target`` is as it was.
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
    """An archive that is whole and on the disk, and still has its hidden name."""

    stage: Staged
    digests: Mapping[str, str]

    def digest(self) -> str:
        return _folder_digest(self.digests) if self.stage.path.is_dir() else files.sha256(self.stage.path)

    def publish(self, *, force: bool) -> None:
        target, is_file = self.stage.target, not self.stage.path.is_dir()
        try:
            self.stage.publish(force=force)
        except FileExistsError:
            # Another build of the same archive came first: fine, if it made the same.
            if _digest_of(target) != self.digest():
                raise BuildError(
                    f"{target} was made by something else while it was being built", tip="--force replaces it"
                ) from None
        if is_file:
            # One of the archive that was replaced would only look like one of this.
            remove_stale_signature(target)


class _Progress:
    """Counts what has been copied, tells the caller, and keeps the disk busy meanwhile."""

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
    """Check everything, then write the archive under a hidden name; what is not published is gone at the end."""
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
    """Write all members, then their digests; return the latter."""
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
        raise BuildError(f"{target} is a folder and no model archive: it is not replaced", tip="choose another name")


def _digest_of(path: Path) -> str:
    """Return the digest of a finished archive, as ``write_archive`` gives it."""
    if not path.is_dir():
        return files.sha256(path)
    inside = [file for file in path.rglob("*") if file.is_file()]
    digests = {file.relative_to(path).as_posix(): files.sha256(file) for file in inside}
    digests.pop(sums.FILE_NAME, None)
    return _folder_digest(digests)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn what the disk says into a BuildError."""
    try:
        yield
    except OSError as error:
        told = described(error, target)
        raise BuildError(told.message, tip=told.tip) from None
