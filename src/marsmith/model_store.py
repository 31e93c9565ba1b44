"""The archives in a model store, as far as a server needs them: who they are, what they hold, what they answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from marsmith.archive import Archive, Manifest
from marsmith.errors import ArchiveError, BuildError, FormatError
from marsmith.formats import examples as example_format
from marsmith.formats.examples import ValidatedExample

SUFFIXES = (".mar", ".tar.gz", ".model")
_LARGEST_EXAMPLE = 1 << 28


@dataclass(frozen=True)
class StoredArchive:
    """One archive in a model store.

    Attributes:
        archive: the archive, whose structure has been checked.
    """

    archive: Archive

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.archive.path

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        return self.archive.manifest

    @property
    def version(self) -> tuple[str, str]:
        """Model name and model version."""
        return self.manifest.model_name, self.manifest.model_version


@dataclass(frozen=True)
class StoredExample:
    """An example request of an archive, with the reply that it must get."""

    body: bytes
    expected: ValidatedExample


def archives_in(store: Path, load_models: str) -> list[Path]:
    """Return the files and folders that a server with this ``load_models`` loads, sorted; URLs are left out."""
    if load_models.strip().lower() == "all":
        return sorted(path for path in store.iterdir() if _is_loaded(path))
    names = (item.partition("=")[2] or item for item in load_models.split(","))
    return sorted(store / name.strip() for name in names if name.strip() and "://" not in name)


def open_stored(path: Path) -> StoredArchive:
    """Open an archive and check that it holds what its manifest promises.

    Raises:
        ArchiveError: it is damaged, dangerous, or lacks what TorchServe needs to load it.
        FormatError: its manifest does not follow its format.
    """
    archive = Archive.open(path)
    missing = sorted(set(_promised(archive.manifest)) - archive.members.keys())
    if missing:
        raise BuildError(f"{path}: its manifest names {', '.join(missing)}, which it does not hold")
    return StoredArchive(archive)


def first_example(stored: StoredArchive) -> StoredExample | None:
    """Return the first example request that lies in the archive; None where it holds none.

    Raises:
        ArchiveError: it cannot be read.
    """
    text = stored.archive.text(example_format.FILE_NAME)
    if text is None:
        return None
    try:
        listed = example_format.parse_examples(text, f"{stored.path}: {example_format.FILE_NAME}")
    except FormatError as error:
        raise ArchiveError(error.message, tip="build the archive again") from None
    if not listed:
        return None
    body = stored.archive.read(f"{example_format.FOLDER}/{listed[0].input}", limit=_LARGEST_EXAMPLE)
    return StoredExample(body, listed[0])


def _is_loaded(path: Path) -> bool:
    """Whether ``load_models=all`` takes it: folders, and files with an archive's suffix, unless they are hidden."""
    return not path.name.startswith(".") and (path.is_dir() or path.name.endswith(SUFFIXES))


def _promised(manifest: Manifest) -> Iterable[str]:
    """Return the members that the manifest names, at the top of the archive."""
    named = [manifest.serialized_file, manifest.model_file, manifest.config_file]
    handler = manifest.handler.partition(":")[0]
    # Without .py it may be the name of a handler that comes with TorchServe.
    if handler.endswith(".py"):
        named.append(handler)
    return [Path(name).name for name in named if name]
