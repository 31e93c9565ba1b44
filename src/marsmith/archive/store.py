"""Archives in a model store, for a server: their versions, files and examples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from marsmith.archive import Archive, Manifest
from marsmith.archive.answers import Facts, Judgement, judge
from marsmith.archive.examples import FOLDER, ValidatedExample
from marsmith.archive.unpacked import handler_block
from marsmith.archive.verify import read_examples
from marsmith.errors import ArchiveError, BuildError, ConfigError, FormatError
from marsmith.json_reader import read_json
from marsmith.strict_yaml import load_model_config

SUFFIXES = (".mar", ".tar.gz", ".model")
_LARGEST_EXAMPLE = 1 << 28


@dataclass(frozen=True)
class StoredArchive:
    """One archive in a model store.

    Attributes:
        archive: the archive with a checked structure.
        alias: model name that ``load_models`` gives it; None for its own.
        warnings: what could not be verified, one sentence each.
    """

    archive: Archive
    alias: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Path of the archive."""
        return self.archive.path

    @property
    def manifest(self) -> Manifest:
        """Manifest of the archive."""
        return self.archive.manifest

    @property
    def version(self) -> tuple[str, str]:
        """Model name and model version."""
        return self.alias or self.manifest.model_name, self.manifest.model_version


@dataclass(frozen=True)
class StoredExample:
    """An example request of an archive, with its validated reply.

    Attributes:
        body: body of the request.
        expected: validated reply.
        settings: the archive's block ``handler``, which describes the validation.
    """

    body: bytes
    expected: ValidatedExample
    settings: Mapping[str, Any]

    def judge(self, status: int, body: bytes, facts: Facts) -> Judgement:
        """Compare a reply; ``facts`` asks the worker what it computes in."""
        return judge(self.expected, status, body, self.settings, facts)


@dataclass(frozen=True)
class LoadItem:
    """One item of ``load_models``.

    Attributes:
        argument: item in the syntax of TorchServe's command line.
        path: file or folder in the store; None for a URL, which TorchServe downloads itself.
        alias: model name of the item; None for its own.
        from_listing: whether it is only an item because everything in the store is loaded.
    """

    argument: str
    path: Path | None = None
    alias: str | None = None
    from_listing: bool = False


def load_items(store: Path, load_models: str) -> list[LoadItem]:
    """Return the items of ``load_models``; for ``all`` every file in the store.

    Raises:
        OSError: the store cannot be read.
    """
    if load_models.strip().lower() == "all":
        paths = sorted(path for path in store.iterdir() if not _is_expected(path))
        return [LoadItem(path.name, path, from_listing=True) for path in paths]
    asked = dict.fromkeys(name.strip() for name in load_models.split(",") if name.strip())
    return [_load_item(store, argument) for argument in asked]


def snapshot_items(store: Path, snapshot: str) -> list[LoadItem]:
    """Return the items of a ``model_snapshot``; empty if TorchServe cannot read it either."""
    try:
        models = read_json(snapshot)["models"].values()
        names = {str(version["marName"]) for versions in models for version in versions.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [LoadItem(name, store / name) for name in sorted(names)]


def _load_item(store: Path, argument: str) -> LoadItem:
    alias, equals, url = argument.partition("=")
    if "://" in argument:
        return LoadItem(argument)
    return LoadItem(argument, store / (url if equals else alias).strip(), alias.strip() if equals else None)


def archives_in(store: Path, load_models: str) -> list[Path]:
    """Return the files and folders that a server with this ``load_models`` loads, sorted, without URLs."""
    items = load_items(store, load_models)
    return sorted(item.path for item in items if item.path and (not item.from_listing or is_archive(item.path)))


def is_archive(path: Path) -> bool:
    """Return whether a file in a store claims to be an archive: by its suffix, or as a folder with a manifest."""
    if path.is_dir():
        # A folder without access cannot be checked, and no server could load it either.
        return os.access(path, os.X_OK) and (path / "MAR-INF").is_dir()
    return path.name.endswith(SUFFIXES)


def open_stored(path: Path, alias: str | None = None) -> StoredArchive:
    """Open an archive and check that it contains the files of its manifest.

    Args:
        path: path of the archive.
        alias: model name to serve it under; None for its own.

    Raises:
        ArchiveError: it is damaged, dangerous, or lacks files that TorchServe needs to load it.
        FormatError: its manifest violates the format.
    """
    archive = Archive.open(path)
    missing = sorted(set(_promised(archive.manifest)) - archive.members.keys())
    if missing:
        raise BuildError(f"{path}: its manifest names {', '.join(missing)}, which it does not contain")
    return StoredArchive(archive, alias)


def examples_in(archive: Archive) -> Iterator[StoredExample]:
    """Yield the example requests of an archive, in order.

    Raises:
        ArchiveError: they cannot be read.
        FormatError: their list violates the format.
    """
    settings = handler_settings(archive)
    for example in read_examples(archive) or []:
        body = _example_file(archive, example.input)
        if example.reply_file is not None:
            example = replace(example, recorded=_example_file(archive, example.reply_file))
        yield StoredExample(body, example, settings)


def first_example(stored: StoredArchive) -> StoredExample | None:
    """Return the first example request of an archive; None if there is none.

    Raises:
        ArchiveError: it cannot be read.
    """
    try:
        return next(examples_in(stored.archive), None)
    except FormatError as error:
        raise ArchiveError(error.message, tip="build the archive again") from None


def handler_settings(archive: Archive) -> Mapping[str, Any]:
    """Return the model config's block ``handler``; empty if it cannot be read, which lint reports."""
    name = archive.manifest.config_file
    text = archive.text(name) if name else None
    try:
        return handler_block(load_model_config(text, str(name), ConfigError)) if text is not None else {}
    except ConfigError:
        return {}


def _example_file(archive: Archive, name: str) -> bytes:
    return archive.read(f"{FOLDER}/{name}", limit=_LARGEST_EXAMPLE)


def _is_expected(path: Path) -> bool:
    """Return whether a file belongs into a store for another reason: hidden, a page, a signature."""
    return path.name.startswith((".", "README")) or path.name.endswith(".sig")


def _promised(manifest: Manifest) -> Iterable[str]:
    """Return the members in the manifest, which are at the top of the archive."""
    named = [manifest.serialized_file, manifest.model_file, manifest.config_file]
    handler = manifest.handler.partition(":")[0]
    # Without .py it may be the name of one of TorchServe's handlers.
    if handler.endswith(".py"):
        named.append(handler)
    return [Path(name).name for name in named if name]
