"""Atomic builds: a file or folder is built under a hidden name beside its target, and renamed when it is complete.

TorchServe's ``load_models=all`` ignores hidden names. A builder holds a lock on its temporary file or folder; the
kernel releases it however the builder ends. A file with such a name and without a lock is therefore left over from a
builder that was killed, and the next build of the same target removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from marsmith import files

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_NO_REPLACE, _EXCHANGE = 1, 2
_BEGIN_WRITING = 2
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@dataclass(frozen=True)
class Staged:
    """A temporary file or folder that replaces its target.

    Attributes:
        path: path to build at.
        target: final path.
        descriptor: descriptor open on ``path``, which holds its lock.
    """

    path: Path
    target: Path
    descriptor: int

    def begin_sync(self) -> None:
        """Ask the kernel to start writing to the disk, without waiting; only a hint, ignored on other systems."""
        begin = getattr(_LIBC, "sync_file_range", None)
        if begin is not None:
            begin(self.descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _BEGIN_WRITING)

    def sync(self) -> None:
        """Sync the content to the disk."""
        os.fsync(self.descriptor)

    def publish(self, *, force: bool) -> None:
        """Rename it to its target, atomically.

        Raises:
            FileExistsError: the target exists and ``force`` is False.
            OSError: the file system refuses.
        """
        if not force:
            _rename(self.path, self.target, _NO_REPLACE)
        elif self.path.is_dir():
            _replace_folder(self.path, self.target)
        else:
            self.path.replace(self.target)
        files.sync_folder(self.target.parent)


@contextmanager
def staged(target: Path, *, folder: bool = False) -> Iterator[Staged]:
    """Yield a temporary file or folder beside ``target``; it is removed at the end unless published.

    Raises:
        OSError: the folder of ``target`` is not writable.
    """
    remove_litter(target)
    path, descriptor = _create(target, folder)
    try:
        yield Staged(path, target, descriptor)
    finally:
        # After an exchange this is the replaced folder.
        _remove(path)
        os.close(descriptor)


def remove_litter(target: Path) -> None:
    """Remove leftovers of killed builds of ``target``; running builds are not affected."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{16}\.tmp")
    with suppress(OSError):
        for path in [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]:
            _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        # A lock means that its builder is running.
        if files.try_lock(descriptor):
            _remove(path)
    except OSError:
        # This file system has no locks, so a running builder cannot be detected.
        return
    finally:
        os.close(descriptor)


def _create(target: Path, folder: bool) -> tuple[Path, int]:
    """Create and lock the temporary file or folder."""
    while True:
        path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        if folder:
            path.mkdir()
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            continue
        if _claimed(path, descriptor):
            return path, descriptor
        os.close(descriptor)


def _claimed(path: Path, descriptor: int) -> bool:
    """Lock a new file; False if another builder removed it as a leftover just before."""
    # Without locks in this file system, no builder removes it.
    with suppress(OSError):
        return files.try_lock(descriptor) and path.exists()
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _replace_folder(source: Path, target: Path) -> None:
    """Replace a folder by another one, which is then at ``source``; other builds may run meanwhile."""
    while True:
        with suppress(FileExistsError):
            return _rename(source, target, _NO_REPLACE)
        with suppress(FileNotFoundError):
            return _rename(source, target, _EXCHANGE)


def _rename(source: Path, target: Path, flag: int) -> None:
    """Rename without replacing, or exchange two names; atomically if the system supports it."""
    rename = getattr(_LIBC, "renameat2", None)
    if rename is not None:
        if not rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flag)):
            return
        number = ctypes.get_errno()
        if number not in _UNSUPPORTED:
            raise OSError(number, os.strerror(number), str(target))
    if flag == _NO_REPLACE:
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
    else:
        old = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        target.rename(old)
        source.rename(target)
        _remove(old)
