"""Archives as plain folders, like torch-model-archiver's ``no-archive``: reader and writer. TorchServe serves them."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from marsmith import files
from marsmith.archive.copier import Content, Copier
from marsmith.archive.members import (
    MemberInfo,
    ReadLimits,
    check_collisions,
    check_count,
    check_expansion,
    check_name,
    hostile,
)
from marsmith.errors import ArchiveError


class FolderSource:
    """The files below a folder; links, pipes and devices are refused.

    Raises:
        HostileArchiveError: the folder contains something else than regular files, or a dangerous name.
        ArchiveError: the folder cannot be read.
    """

    def __init__(self, path: Path, limits: ReadLimits) -> None:
        self._path = path
        infos = sorted(_scan(path, limits), key=lambda info: info.name)
        check_collisions(path, [info.name for info in infos])
        size = sum(info.size for info in infos)
        check_expansion(path, limits, size, size)
        self._members = MappingProxyType({info.name: info for info in infos})

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        """All files by name, sorted."""
        return self._members

    @contextmanager
    def open_member(self, name: str) -> Iterator[BinaryIO]:
        """Open one file; raise if it is another file than at first."""
        info = self._members[name]
        try:
            # Without O_NONBLOCK, a pipe that replaced the file would block forever.
            descriptor = os.open(self._path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ArchiveError(f"{self._path.name}: member {name!r}: {error.strerror}") from None
        with io.open(descriptor, "rb") as file:  # noqa: UP020 - there is a descriptor, not a path
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size != info.size:
                raise ArchiveError(f"{self._path.name}: member {name!r}: the file changed while it was read")
            yield file

    def walk(self) -> Iterator[tuple[str, BinaryIO]]:
        """Yield every file with its content."""
        for name in self._members:
            with self.open_member(name) as file:
                yield name, file

    def layout_problems(self) -> list[str]:
        """Return nothing: a folder has no structure beyond its files."""
        return []


def _scan(root: Path, limits: ReadLimits) -> Iterator[MemberInfo]:
    """Find all files without following links."""
    seen = 0
    pending = [""]
    while pending:
        prefix = pending.pop()
        for entry in _entries(root, root / prefix):
            seen += 1
            check_count(root, limits, seen)
            name = f"{prefix}{entry.name}"
            check_name(root, name)
            mode = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(mode.st_mode):
                pending.append(f"{name}/")
            elif stat.S_ISREG(mode.st_mode):
                yield MemberInfo(name, mode.st_size, mode.st_size, "file", None)
            else:
                kind = "a symbolic link" if entry.is_symlink() else "a device, pipe or socket"
                raise hostile(root, f"it is {kind}", name)


def _entries(root: Path, folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ArchiveError(f"{root.name}: cannot read the folder {folder}: {error.strerror}") from None


class FolderWriter:
    """Writes members as files, mode 0644, in folders of mode 0755, whatever the umask.

    Args:
        folder: target; exists and is empty.
        copier: copier that computes the digests.
    """

    def __init__(self, folder: Path, copier: Copier) -> None:
        self._folder = folder
        self._copier = copier

    def add(self, name: str, source: BinaryIO, size: int, *, deflate: bool = False) -> Content:  # noqa: ARG002  # a file is a file
        """Write one member to the disk and return its description.

        Raises:
            BuildError: ``source`` does not have ``size`` bytes.
        """
        place = self._folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            content = self._copier.copy(name, source, size, file.write)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        return content

    def close(self) -> None:
        """Set the mode of every folder, and sync the folders to the disk."""
        for folder, _, _ in os.walk(self._folder):
            Path(folder).chmod(0o755)
            files.sync_folder(Path(folder))
