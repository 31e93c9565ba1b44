"""An archive as a plain folder, which TorchServe serves as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from marsmith.archive.copier import Content, Copier


class FolderWriter:
    """Writes members as files, mode 0644, in folders of mode 0755, whatever the umask.

    Args:
        folder: where to; exists and is empty.
        copier: copies and hashes.
    """

    def __init__(self, folder: Path, copier: Copier) -> None:
        self._folder = folder
        self._copier = copier

    def add(self, name: str, source: BinaryIO, size: int, *, deflate: bool = False) -> Content:  # noqa: ARG002  # a file is a file
        """Write one member to the disk and return what it was.

        Raises:
            BuildError: ``source`` does not hold ``size`` bytes.
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
        """Give every folder its mode, and bring their lists of files to the disk."""
        for folder, _, _ in os.walk(self._folder):
            Path(folder).chmod(0o755)
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
