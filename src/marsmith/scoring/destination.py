"""Where a batch writes: a folder, or a prefix of an object store. A file is created whole, and never replaced."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from marsmith import files
from marsmith.child_processes import removed_at_end
from marsmith.errors import AccessError
from marsmith.file_errors import described
from marsmith.scoring import urls

# File systems without hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Destination(Protocol):
    """A folder, or a prefix of an object store."""

    @property
    def address(self) -> str:
        """Path or URL."""

    def names(self) -> set[str]:
        """Return the names of the files; empty if it does not exist.

        Raises:
            AccessError: it cannot be read.
        """
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: there is none of that name.
            AccessError: it cannot be read.
        """
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Create a file, whole and durable; return whether it was not there before, in which case nothing changes.

        Raises:
            AccessError: it cannot be written.
        """
        ...

    def upload(self, name: str, file: Path) -> None:
        """Create a file with the content of another one, which may be large; one that is there is kept or equal.

        Raises:
            AccessError: it cannot be written.
        """
        ...


class Folder:
    """A folder of this machine, or of a network file system; a context manager, which removes its temporary files."""

    def __init__(self, path: Path, temporary: Path | None = None) -> None:
        """Name the folder, which may not exist yet.

        Args:
            path: of the folder.
            temporary: folder in it for temporary files, which another process removes; None: one of its own.
        """
        self.path = path
        self.temporary = temporary or path.absolute() / f".writing-{secrets.token_hex(8)}"
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        self._cleanup.enter_context(removed_at_end(self.temporary))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cleanup.close()

    @property
    def address(self) -> str:
        """Path of the folder."""
        return str(self.path)

    def names(self) -> set[str]:
        """Return the names of the files; empty if it does not exist."""
        try:
            return set(os.listdir(self.path))  # noqa: PTH208 - a million names
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise described(error, self.path) from None

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise described(error, self.path / name) from None

    def create(self, name: str, content: bytes) -> bool:
        """Create a file under a temporary name, sync it, and give it its name, which no other file may have."""
        target = self.path / name
        temporary = self.temporary / secrets.token_hex(8)
        try:
            self.temporary.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            created = _give_name(temporary, target)
            files.sync_folder(self.path)
        except OSError as error:
            raise described(error, target) from None
        finally:
            temporary.unlink(missing_ok=True)
        return created

    def upload(self, name: str, file: Path) -> None:
        """Copy a file under a temporary name, sync it, and give it its name."""
        if (self.path / name).exists():
            return
        temporary = self.temporary / secrets.token_hex(8)
        try:
            self.temporary.mkdir(parents=True, exist_ok=True)
            files.copy(file, temporary)
            files.publish(temporary, self.path / name)
        except OSError as error:
            raise described(error, self.path / name) from None
        finally:
            temporary.unlink(missing_ok=True)


class Prefix:
    """A prefix of an object store. The store itself creates an object only if there is none of that name."""

    def __init__(self, url: str) -> None:
        """Name the prefix.

        Raises:
            MissingDependencyError: the package for this kind of store is not installed.
        """
        self._url = url.rstrip("/")
        self._system, self._path = urls.file_system(self._url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    @property
    def address(self) -> str:
        """URL of the prefix."""
        return self._url

    def names(self) -> set[str]:
        """Return the names of the objects directly under the prefix."""
        try:
            found = urls.refusable(self._url, lambda: self._system.ls(self._path, detail=False, refresh=True))
        except FileNotFoundError:
            return set()
        return {str(each).rpartition("/")[2] for each in found}

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        address = f"{self._url}/{name}"
        return bytes(urls.refusable(address, lambda: self._system.cat_file(f"{self._path}/{name}")))

    def create(self, name: str, content: bytes) -> bool:
        """Create an object with a conditional put: of two that race, exactly one wins."""
        address = f"{self._url}/{name}"
        try:
            self._put(address, lambda: self._system.pipe_file(f"{self._path}/{name}", content, mode="create"))
        except FileExistsError:
            return False
        return True

    def upload(self, name: str, file: Path) -> None:
        """Create an object with the content of a file."""
        self._put(f"{self._url}/{name}", lambda: self._system.put_file(str(file), f"{self._path}/{name}"))

    def _put(self, address: str, put: object) -> None:
        try:
            urls.refusable(address, put)  # type: ignore[arg-type]
        except FileNotFoundError as error:
            raise AccessError(f"{address}: there is no such bucket: {error}", tip="make the bucket first") from None


def open_destination(address: str, temporary: Path | None = None) -> Folder | Prefix:
    """Return the destination with this path or URL; ``temporary`` is that of a folder, see there.

    Raises:
        MissingDependencyError: the package for this kind of store is not installed.
    """
    return Prefix(address) if urls.is_url(address) else Folder(Path(address), temporary)


def _give_name(temporary: Path, target: Path) -> bool:
    """Link a file under its name; return whether the name was free."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            return False
        temporary.rename(target)
    return True
