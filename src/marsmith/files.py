"""Atomic writes, file locks, and digests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_LOOK_S = 0.05
_CHUNK_BYTES = 1 << 20


class LockedError(Exception):
    """Another process holds the lock.

    Attributes:
        holder: process id of the holder as text; empty if it is unknown.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {f'process {holder}' if holder else 'another process'}")
        self.holder = holder


def write_atomically(
    path: Path, content: bytes | str, *, mode: int | None = None, follow_links: bool = True, sync: bool = True
) -> None:
    """Write a file atomically and sync it to the disk. Parent folders are created.

    Args:
        path: the file.
        content: bytes, or a text, which is written in UTF-8.
        mode: permissions, from the first byte on; None: those of the replaced file, else the default ones.
        follow_links: whether to write the target of a link; else the file replaces the link.
        sync: False: do not wait for the disk. After a loss of power the file may then be empty or the old one.

    Raises:
        OSError: the file cannot be written; an existing file is unchanged.
    """
    target = path.resolve() if follow_links else path
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    if mode is None and not target.is_symlink():
        with suppress(FileNotFoundError):
            mode = target.stat().st_mode & 0o777
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                # The process's umask may have removed some bits.
                os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if sync:
                os.fsync(descriptor)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_folder(target.parent)


def publish(finished: Path, target: Path) -> None:
    """Rename a finished file in its folder; after a loss of power it is complete or missing.

    Raises:
        OSError: the disk refuses; the file keeps its name.
    """
    _sync(finished)
    finished.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a rename in it survives a loss of power."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, *, wait_s: float | None = None, remove: bool = False) -> Iterator[None]:
    """Hold a lock. It is released when the process ends in any way.

    Args:
        path: the lock file; it and its parent folders are created.
        wait_s: maximum wait for another holder, in seconds; None: no limit.
        remove: whether to delete the file with the lock.

    Raises:
        LockedError: another process holds the lock and did not release it in time.
        OSError: the file cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    late = None if wait_s is None else time.monotonic() + wait_s
    while (descriptor := _locked(path)) is None:
        if late is not None and time.monotonic() >= late:
            raise LockedError(path, _holder(path))
        time.sleep(_LOOK_S)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a folder, and remove the created parts of its path if it is empty at the end.

    Raises:
        OSError: the folder cannot be created.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for each in missing:
                each.rmdir()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex, in constant memory."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(stream: BinaryIO) -> str:
    """Return the SHA-256 of the rest of a stream, in hex, in constant memory."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def copy(source: Path, target: Path) -> str:
    """Copy the content of a file, and return its SHA-256 in hex, in constant memory."""
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


def try_lock(descriptor: int) -> bool:
    """Lock an open file, and return whether that succeeded; the lock is released when the file is closed.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked(path: Path) -> int | None:
    """Open and lock the file; None if another process holds it, or has removed it meanwhile."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with suppress(FileNotFoundError):
            if try_lock(descriptor) and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
