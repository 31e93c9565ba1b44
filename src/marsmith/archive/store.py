"""The archives in a model store, as far as a server needs them: who they are, what they hold, what they answer."""

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
        archive: the archive, whose structure has been checked.
        alias: the model name that ``load_models`` gives it instead of its own; None for its own.
        warnings: what nobody has proved about it, one sentence each.
    """

    archive: Archive
    alias: str | None = None
    warnings: tuple[str, ...] = ()

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
        return self.alias or self.manifest.model_name, self.manifest.model_version


@dataclass(frozen=True)
class StoredExample:
    """An example request of an archive, with the reply that it must get.

    Attributes:
        body: of the request.
        expected: the reply.
        settings: the archive's block ``handler``: what the reply was computed with.
    """

    body: bytes
    expected: ValidatedExample
    settings: Mapping[str, Any]

    def judge(self, status: int, body: bytes, facts: Facts) -> Judgement:
        """Judge a reply; ``facts`` asks the worker what it computes in."""
        return judge(self.expected, status, body, self.settings, facts)


@dataclass(frozen=True)
class LoadItem:
    """One thing that ``load_models`` asks for.

    Attributes:
        argument: as TorchServe's command line takes it.
        path: the file or folder in the store; None for a URL, which TorchServe fetches by itself.
        alias: the model name that it is given; None for its own.
        from_listing: whether it is only there because everything in the store is asked for.
    """

    argument: str
    path: Path | None = None
    alias: str | None = None
    from_listing: bool = False


def load_items(store: Path, load_models: str) -> list[LoadItem]:
    """Return what a server with this ``load_models`` is asked to load; of ``all`` everything that anybody put there.

    Raises:
        OSError: the store cannot be read.
    """
    if load_models.strip().lower() == "all":
        paths = sorted(path for path in store.iterdir() if not _is_expected(path))
        return [LoadItem(path.name, path, from_listing=True) for path in paths]
    asked = dict.fromkeys(name.strip() for name in load_models.split(",") if name.strip())
    return [_load_item(store, argument) for argument in asked]


def snapshot_items(store: Path, snapshot: str) -> list[LoadItem]:
    """Return what a ``model_snapshot`` has TorchServe load; nothing of one that TorchServe cannot read either."""
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
    """Return the files and folders that a server with this ``load_models`` loads, sorted; URLs are left out."""
    items = load_items(store, load_models)
    return sorted(item.path for item in items if item.path and (not item.from_listing or is_archive(item.path)))


def is_archive(path: Path) -> bool:
    """Whether something in a store claims to be an archive: by its suffix, or as a folder with a manifest."""
    if path.is_dir():
        # One that cannot be entered tells nothing, and no server could load it either.
        return os.access(path, os.X_OK) and (path / "MAR-INF").is_dir()
    return path.name.endswith(SUFFIXES)


def open_stored(path: Path, alias: str | None = None) -> StoredArchive:
    """Open an archive and check that it holds what its manifest promises.

    Args:
        path: of the archive.
        alias: the model name that it is served under; None: its own.

    Raises:
        ArchiveError: it is damaged, dangerous, or lacks what TorchServe needs to load it.
        FormatError: its manifest does not follow its format.
    """
    archive = Archive.open(path)
    missing = sorted(set(_promised(archive.manifest)) - archive.members.keys())
    if missing:
        raise BuildError(f"{path}: its manifest names {', '.join(missing)}, which it does not hold")
    return StoredArchive(archive, alias)


def examples_in(archive: Archive) -> Iterator[StoredExample]:
    """Give the example requests that lie in an archive, in order; none where it holds none.

    Raises:
        ArchiveError: they cannot be read.
        FormatError: their list does not follow its format.
    """
    settings = _handler_settings(archive)
    for example in read_examples(archive) or []:
        body = _example_file(archive, example.input)
        if example.reply_file is not None:
            example = replace(example, recorded=_example_file(archive, example.reply_file))
        yield StoredExample(body, example, settings)


def first_example(stored: StoredArchive) -> StoredExample | None:
    """Return the first example request that lies in the archive; None where it holds none.

    Raises:
        ArchiveError: it cannot be read.
    """
    try:
        return next(examples_in(stored.archive), None)
    except FormatError as error:
        raise ArchiveError(error.message, tip="build the archive again") from None


def _example_file(archive: Archive, name: str) -> bytes:
    return archive.read(f"{FOLDER}/{name}", limit=_LARGEST_EXAMPLE)


def _handler_settings(archive: Archive) -> Mapping[str, Any]:
    """Return the model config's block ``handler``; empty where it cannot be read, which lint tells."""
    name = archive.manifest.config_file
    text = archive.text(name) if name else None
    try:
        return handler_block(load_model_config(text, str(name), ConfigError)) if text is not None else {}
    except ConfigError:
        return {}


def _is_expected(path: Path) -> bool:
    """Whether it lies in a store for a reason of its own and is not worth a word: hidden, a page, a signature."""
    return path.name.startswith((".", "README")) or path.name.endswith(".sig")


def _promised(manifest: Manifest) -> Iterable[str]:
    """Return the members that the manifest names, at the top of the archive."""
    named = [manifest.serialized_file, manifest.model_file, manifest.config_file]
    handler = manifest.handler.partition(":")[0]
    # Without .py it may be the name of a handler that comes with TorchServe.
    if handler.endswith(".py"):
        named.append(handler)
    return [Path(name).name for name in named if name]
