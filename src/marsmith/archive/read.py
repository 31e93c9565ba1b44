"""Open a model archive of marsmith or of the stock tool: ``.mar``, ``.tar.gz`` or a folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from marsmith import files
from marsmith.archive import manifest as manifest_format
from marsmith.archive import sums as sums_format
from marsmith.archive.manifest import Manifest, parse_manifest
from marsmith.archive.members import CHUNK_BYTES, Kind, MemberInfo, MemberSource, ReadLimits
from marsmith.archive.staging import staged
from marsmith.archive.sums import parse_sums, render_sums
from marsmith.errors import ArchiveError
from marsmith.names import did_you_mean
from marsmith.stand_ins import stand_in

# Without examples: archives of other tools may have some, and they are replayed too.
_OUR_MEMBERS = (sums_format.FILE_NAME, "MAR-INF/export.json", "MAR-INF/environment.txt", "MAR-INF/sbom.cdx.json")
_TIP = "give the path of a .mar, a .tar.gz or a folder"


@dataclass(frozen=True)
class Archive:
    """A model archive with a checked structure and a parsed manifest.

    Attributes:
        path: the file or folder.
        kind: ``mar``, ``tar.gz`` or ``folder``.
        manifest: content of ``MAR-INF/MANIFEST.json``.
        sums: SHA-256 in hex by name, from ``MAR-INF/SHA256SUMS``; None without such a file. ``verify`` compares them
            with the content.
    """

    path: Path
    kind: Kind
    manifest: Manifest
    sums: Mapping[str, str] | None
    _source: MemberSource = field(repr=False, compare=False)
    _limits: ReadLimits = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str, *, limits: ReadLimits | None = None) -> Archive:
        """Open an archive and check its structure; contents are checked when they are read.

        Raises:
            HostileArchiveError: the structure is dangerous or inconsistent; the message names the member.
            ArchiveError: it is not an archive, it is damaged, or it has no manifest.
            FormatError: the manifest or the list of digests violates the format.
        """
        path, limits = Path(path), limits or ReadLimits()
        try:
            kind, source = _open_source(path, limits)
        except OSError as error:
            raise ArchiveError(f"{path}: {error.strerror or error}", tip=_TIP) from None
        text = _read_text(source, path, manifest_format.FILE_NAME, limits)
        if text is None:
            raise ArchiveError(f"{path.name}: no {manifest_format.FILE_NAME}: not a model archive")
        manifest = parse_manifest(text, f"{path.name}/{manifest_format.FILE_NAME}")
        sums = _read_text(source, path, sums_format.FILE_NAME, limits)
        parsed = None if sums is None else parse_sums(sums, f"{path.name}/{sums_format.FILE_NAME}")
        return cls(path, kind, manifest, parsed, source, limits)

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """All files by name, in the order of the archive."""
        return self._source.members

    @property
    def is_ours(self) -> bool:
        """Whether marsmith built it, or any member indicates this: then its digests must exist and match."""
        return self.manifest.marsmith is not None or bool(self.marks)

    @property
    def marks(self) -> tuple[str, ...]:
        """Members that only marsmith writes. They identify an archive whose manifest has lost marsmith's key."""
        return tuple(name for name in _OUR_MEMBERS if name in self.members)

    @property
    def size(self) -> int:
        """Size on disk, in bytes."""
        return self.path.stat().st_size if self.kind != "folder" else sum(info.size for info in self.members.values())

    @contextmanager
    def open_member(self, name: str) -> Iterator[BinaryIO]:
        """Open one member as a stream; its length and CRC are checked at its end.

        Raises:
            ArchiveError: the member does not exist, or its content is damaged.
            HostileArchiveError: its content has another length than in its header.
        """
        if name not in self.members:
            raise ArchiveError(f"{self.path.name}: no member {name!r}{did_you_mean(name, self.members)}")
        with self._source.open_member(name) as stream:
            yield stream

    def read(self, name: str, *, limit: int | None = None) -> bytes:
        """Return the content of one member.

        Args:
            name: name of the member.
            limit: maximum number of bytes to read into memory; default 4 MiB.

        Raises:
            ArchiveError: the member does not exist, is larger than ``limit``, or is damaged.
        """
        most = self._limits.text_bytes if limit is None else limit
        with self.open_member(name) as stream:
            _check_limit(self.path, self.members[name], most)
            return stream.read()

    def text(self, name: str) -> str | None:
        """Return the content of one member as text; None if the member does not exist.

        Raises:
            ArchiveError: it is not UTF-8, too large for a text, or damaged.
        """
        return _read_text(self._source, self.path, name, self._limits)

    def walk(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield every member with its content in one pass; each stream is valid until the next one is yielded."""
        return self._source.walk()

    def layout_problems(self) -> list[str]:
        """Return where the structure differs from marsmith's own; always empty for folders and ``.tar.gz``."""
        return self._source.layout_problems()

    def extract(self, folder: Path | str) -> Path:
        """Unpack into a folder that does not exist or is empty, atomically.

        Raises:
            ArchiveError: the folder is not empty or cannot be written, or a member is damaged.
        """
        target = Path(folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged(target, folder=True) as stage:
                for name, stream in self.walk():
                    _unpack(stream, stage.path / name)
                # Unlike ``publish``, this replaces an empty folder.
                stage.path.replace(target)
        except OSError as error:
            raise ArchiveError(f"cannot unpack into {target}: {error.strerror}", tip="name a new folder") from None
        return target

    def digest(self) -> str:
        """Return the SHA-256 in hex: of the file, or for a folder of the ``SHA256SUMS`` that its files should have."""
        if self.kind != "folder":
            return files.sha256(self.path)
        digests = self.member_digests()
        digests.pop(sums_format.FILE_NAME, None)
        return hashlib.sha256(render_sums(digests).encode()).hexdigest()

    def member_digests(self) -> dict[str, str]:
        """Return the SHA-256 in hex of every member, in one pass.

        Raises:
            ArchiveError: a member is damaged.
        """
        return {name: files.sha256_of(stream) for name, stream in self.walk()}


def _open_source(path: Path, limits: ReadLimits) -> tuple[Kind, MemberSource]:
    """Determine the kind by the content, not by the name."""
    if path.is_dir():
        from marsmith.archive.folder import FolderSource

        return "folder", FolderSource(path, limits)
    if not path.is_file():
        # Opening a pipe would block until a process writes into it.
        raise ArchiveError(f"{path}: {'not a file' if path.exists() else 'no such file'}", tip=_TIP)
    instead = stand_in(path)
    if instead:
        raise ArchiveError(f"{path.name} {instead.what}, not a zip file", tip=instead.tip)
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"\x1f\x8b":
        from marsmith.archive.tar_reader import TarSource

        return "tar.gz", TarSource(path, limits)
    from marsmith.archive.zip_reader import ZipSource

    return "mar", ZipSource(path, limits)


def _check_limit(path: Path, info: MemberInfo, most: int) -> None:
    if info.size > most:
        raise ArchiveError(f"{path.name}: member {info.name!r}: {info.size:,} bytes, above its limit of {most:,}")


def _read_text(source: MemberSource, path: Path, name: str, limits: ReadLimits) -> str | None:
    info = source.members.get(name)
    if info is None:
        return None
    _check_limit(path, info, limits.text_bytes)
    with source.open_member(name) as stream:
        try:
            return stream.read().decode()
        except UnicodeDecodeError:
            raise ArchiveError(f"{path.name}: member {name!r}: not valid UTF-8") from None


def _unpack(stream: BinaryIO, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        shutil.copyfileobj(stream, file, CHUNK_BYTES)
